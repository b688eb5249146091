// SPDX-License-Identifier: Apache-2.0
// An NVML that answers from a profile. What a device of the profile has no key for is "not
// supported". The layouts are those that pynvml declares; versions before those are not here.
// Once initialised, any number of threads may ask; to initialise and to shut down is for one.
#include "json.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define PUBLIC __attribute__((visibility("default")))
#define MAX_HANDLES 256
#define NO_INSTANCE UINT_MAX
#define UUID_BYTES 16
#define BUS_ID_LENGTH 32
#define LEGACY_BUS_ID_LENGTH 16

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    ARGUMENT_VERSION_MISMATCH = 25,
};

enum { P2P_OK = 0, P2P_NOT_SUPPORTED = 5 };
enum { FIELD_LINK_COUNT = 91, FIELD_RECOVERY_ACTION = 230 };
enum { TYPE_UNSIGNED_INT = 1 };

typedef unsigned long long u64;

// What an nvmlDevice_t points to: a device, or a MIG slice, which has a parent.
struct device {
    const struct json *told;
    struct device *parent;
};

static struct json *profile;
static unsigned sessions;
static struct device handles[MAX_HANDLES];
static unsigned handle_count;

// --- The profile ----------------------------------------------------------------------------

static void add_handle(const struct json *told, struct device *parent) {
    if (handle_count < MAX_HANDLES) {
        handles[handle_count++] = (struct device){told, parent};
    }
}

static void forget(void) {
    handle_count = 0;
    json_free(profile);
    profile = NULL;
}

// Read the profile anew. The same place of a profile always has the same handle.
static void read_profile(void) {
    forget();
    profile = json_profile();
    const struct json *devices = json_get(profile, "devices");
    for (unsigned i = 0; i < json_length(devices); i++) {
        add_handle(json_at(devices, i), NULL);
    }
    for (unsigned i = 0; i < handle_count && !handles[i].parent; i++) {
        const struct json *slices = json_get(json_get(handles[i].told, "mig"), "slices");
        for (unsigned k = 0; k < json_length(slices); k++) {
            add_handle(json_at(slices, k), &handles[i]);
        }
    }
}

// The device or slice at this place, of this parent (NULL: among the devices); NULL if none.
static struct device *handle_at(const struct device *parent, unsigned index) {
    for (unsigned i = 0; i < handle_count; i++) {
        if (handles[i].parent == parent && index-- == 0) {
            return &handles[i];
        }
    }
    return NULL;
}

static unsigned count_of(const struct device *parent) {
    unsigned count = 0;
    while (handle_at(parent, count)) {
        count++;
    }
    return count;
}

static unsigned place_of(const struct device *device) {
    unsigned place = 0;
    while (handle_at(NULL, place) && handle_at(NULL, place) != device) {
        place++;
    }
    return place;
}

// The code that `errors` of a device or of the profile asks of this function, and whether it does.
static int asked_for(const struct json *where, const char *function, int *code) {
    u64 number;
    if (!json_number(json_get(json_get(where, "errors"), function), &number)) {
        return 0;
    }
    *code = (int)number;
    return 1;
}

// What each function of the system does first: the code to return, unless all is well.
static int enter_system(const char *function) {
    int code = SUCCESS;
    if (sessions == 0) {
        return UNINITIALIZED;
    }
    asked_for(profile, function, &code);
    return code;
}

// What each function of a device does first: the code to return, unless all is well.
static int enter(const char *function, const struct device *device) {
    int code = enter_system(function), known = 0;
    for (unsigned i = 0; i < handle_count; i++) {
        known |= device == &handles[i];
    }
    if (code != SUCCESS || !known) {
        return code != SUCCESS ? code : INVALID_ARGUMENT;
    }
    const struct json *told = device->parent ? device->parent->told : device->told;
    if (!asked_for(told, function, &code)
        && strcmp(function, "nvmlDeviceGetHandleByIndex_v2") != 0) {
        asked_for(told, "*", &code);
    }
    return code;
}

#define ENTER(device, told)                            \
    do {                                               \
        int entered = enter(__func__, device);         \
        if (entered != SUCCESS || !(told)) {           \
            return entered ? entered : INVALID_ARGUMENT; \
        }                                              \
    } while (0)

// --- Answers --------------------------------------------------------------------------------

// A text, into a buffer of the caller.
static int tell_text(const struct json *told, char *buffer, unsigned length) {
    const char *text = json_text(told);
    if (!text || !buffer) {
        return text ? INVALID_ARGUMENT : NOT_SUPPORTED;
    }
    if (strlen(text) >= length) {
        return INSUFFICIENT_SIZE;
    }
    strcpy(buffer, text);
    return SUCCESS;
}

static int tell_unsigned(const struct json *told, unsigned *value) {
    u64 number;
    if (!json_number(told, &number)) {
        return NOT_SUPPORTED;
    }
    *value = (unsigned)number;
    return SUCCESS;
}

// A number of an object; 0 where it is left out.
static u64 number_in(const struct json *object, const char *key) {
    u64 number = 0;
    json_number(json_get(object, key), &number);
    return number;
}

// Two numbers of an object that come together, as MIG's current and pending mode.
static int tell_pair(const struct json *object, const char *one, unsigned *first,
                     const char *other, unsigned *second) {
    int code = tell_unsigned(json_get(object, one), first);
    return code == SUCCESS ? tell_unsigned(json_get(object, other), second) : code;
}

// --- The system -----------------------------------------------------------------------------

static int initialise(const char *function) {
    int code = SUCCESS;
    if (sessions == 0) {
        read_profile();
        if (!profile) {
            return DRIVER_NOT_LOADED;
        }
    }
    if (!asked_for(profile, function, &code)) {
        code = (int)number_in(profile, "init");
    }
    sessions += code == SUCCESS;
    return code;
}

PUBLIC int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return initialise(__func__);
}

PUBLIC int nvmlInit_v2(void) {
    return initialise(__func__);
}

PUBLIC int nvmlShutdown(void) {
    if (sessions == 0) {
        return UNINITIALIZED;
    }
    if (--sessions == 0) {
        forget();
    }
    return SUCCESS;
}

PUBLIC const char *nvmlErrorString(int code) {
    static const char *const texts[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported",
        "Insufficient Permissions", "Already Initialized", "Not Found", "Insufficient Size",
        "Insufficient External Power", "Driver Not Loaded", "Timeout", "Interrupt Request Issue",
        "NVML Shared Library Not Found", "Function Not Found", "Corrupted infoROM", "GPU is lost",
        "GPU requires reset", "The operating system has blocked the request.",
        "Driver/library version mismatch", "In use by another client", "Insufficient Memory",
        "No data", "The requested vgpu operation is not available on target device",
        "Insufficient Resources", "Frequency not supported", "Argument version mismatch",
        "Deprecated", "System Not Ready", "GPU Not Found", "Invalid State",
        "Reset type not supported",
    };
    return code >= 0 && code < (int)(sizeof texts / sizeof *texts) ? texts[code] : "Unknown Error";
}

PUBLIC int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    int code = enter_system(__func__);
    return code ? code : tell_text(json_get(profile, "driver_version"), version, length);
}

// The library knows its own version also where it could not be initialised.
PUBLIC int nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    int code = SUCCESS;
    if (!profile) {
        read_profile();
    }
    if (!profile || asked_for(profile, __func__, &code)) {
        return profile ? code : UNINITIALIZED;
    }
    return tell_text(json_get(profile, "nvml_version"), version, length);
}

PUBLIC int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    int code = enter_system(__func__);
    if (code != SUCCESS || !version) {
        return code ? code : INVALID_ARGUMENT;
    }
    return tell_unsigned(json_get(profile, "cuda_driver_version"), (unsigned *)version);
}

PUBLIC int nvmlSystemGetCudaDriverVersion(int *version) {
    int code = enter_system(__func__);
    return code ? code : nvmlSystemGetCudaDriverVersion_v2(version);
}

PUBLIC int nvmlDeviceGetCount_v2(unsigned *count) {
    int code = enter_system(__func__);
    if (code != SUCCESS || !count) {
        return code ? code : INVALID_ARGUMENT;
    }
    *count = count_of(NULL);
    return SUCCESS;
}

// --- Which device ---------------------------------------------------------------------------

PUBLIC int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) {
    struct device *found = handle_at(NULL, index);
    ENTER(found, device);
    *device = found;
    return SUCCESS;
}

PUBLIC int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **device) {
    int code = enter_system(__func__);
    if (code != SUCCESS || !uuid) {
        return code ? code : INVALID_ARGUMENT;
    }
    for (unsigned i = 0; i < handle_count; i++) {
        const char *own = json_text(json_get(handles[i].told, "uuid"));
        if (own && strcasecmp(own, uuid) == 0) {
            ENTER(&handles[i], device);
            *device = &handles[i];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

struct address {
    unsigned domain, bus, device;
};

static int parse_address(const char *text, struct address *address) {
    return text && sscanf(text, "%x:%x:%x", &address->domain, &address->bus, &address->device) == 3;
}

PUBLIC int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, struct device **device) {
    int code = enter_system(__func__);
    struct address wanted = {0}, own = {0};
    if (code != SUCCESS || !parse_address(bus_id, &wanted)) {
        return code ? code : INVALID_ARGUMENT;
    }
    for (unsigned i = 0; i < count_of(NULL); i++) {
        if (parse_address(json_text(json_get(handles[i].told, "bus_id")), &own)
            && memcmp(&wanted, &own, sizeof own) == 0) {
            ENTER(&handles[i], device);
            *device = &handles[i];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

// --- What a device is -----------------------------------------------------------------------

#define TELLS_TEXT(function, key)                                                     \
    PUBLIC int function(struct device *device, char *buffer, unsigned length) {       \
        ENTER(device, buffer);                                                        \
        return tell_text(json_get(device->told, key), buffer, length);                \
    }

#define TELLS_NUMBER(function, key)                                                   \
    PUBLIC int function(struct device *device, unsigned *value) {                     \
        ENTER(device, value);                                                         \
        return tell_unsigned(json_get(device->told, key), value);                     \
    }

TELLS_TEXT(nvmlDeviceGetUUID, "uuid")
TELLS_TEXT(nvmlDeviceGetName, "name")
TELLS_TEXT(nvmlDeviceGetSerial, "serial")

TELLS_NUMBER(nvmlDeviceGetMinorNumber, "minor")
TELLS_NUMBER(nvmlDeviceGetArchitecture, "architecture")
TELLS_NUMBER(nvmlDeviceGetBrand, "brand")
TELLS_NUMBER(nvmlDeviceGetVirtualizationMode, "virtualization")
TELLS_NUMBER(nvmlDeviceGetPersistenceMode, "persistence")
TELLS_NUMBER(nvmlDeviceGetComputeMode, "compute_mode")
TELLS_NUMBER(nvmlDeviceGetPerformanceState, "performance_state")
TELLS_NUMBER(nvmlDeviceGetPowerUsage, "power_mw")
TELLS_NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, "retired_pages_pending")
TELLS_NUMBER(nvmlDeviceGetNumaNodeId, "numa_node")
TELLS_NUMBER(nvmlDeviceGetGpuInstanceId, "gpu_instance")
TELLS_NUMBER(nvmlDeviceGetComputeInstanceId, "compute_instance")

PUBLIC int nvmlDeviceGetGspFirmwareVersion(struct device *device, char *version) {
    ENTER(device, version);
    return tell_text(json_get(device->told, "gsp_firmware"), version, 64);
}

struct pci_info {
    char legacy_bus_id[LEGACY_BUS_ID_LENGTH];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[BUS_ID_LENGTH];
};

// The address as the driver writes it, in both its forms.
static void put_address(struct pci_info *info, const struct address *address) {
    info->domain = address->domain;
    info->bus = address->bus;
    info->device = address->device;
    snprintf(info->bus_id, sizeof info->bus_id, "%08X:%02X:%02X.0", info->domain,
             info->bus & 0xFF, info->device & 0xFF);
    snprintf(info->legacy_bus_id, sizeof info->legacy_bus_id, "%04X:%02X:%02X.0",
             info->domain & 0xFFFFFFF, info->bus & 0xFF, info->device & 0xFF);
}

static int tell_pci(const struct json *told, struct pci_info *info) {
    struct address address;
    if (!parse_address(json_text(json_get(told, "bus_id")), &address)) {
        return NOT_SUPPORTED;
    }
    *info = (struct pci_info){
        .pci_device_id = (unsigned)number_in(told, "pci_device_id"),
        .pci_subsystem_id = (unsigned)number_in(told, "pci_subsystem_id"),
    };
    put_address(info, &address);
    return SUCCESS;
}

PUBLIC int nvmlDeviceGetPciInfo_v3(struct device *device, struct pci_info *info) {
    ENTER(device, info);
    return tell_pci(device->told, info);
}

PUBLIC int nvmlDeviceGetCudaComputeCapability(struct device *device, int *major, int *minor) {
    ENTER(device, major && minor);
    const struct json *pair = json_get(device->told, "capability");
    int code = tell_unsigned(json_at(pair, 0), (unsigned *)major);
    return code ? code : tell_unsigned(json_at(pair, 1), (unsigned *)minor);
}

// --- Memory, load, temperature --------------------------------------------------------------

struct memory {
    u64 total, free, used;
};

struct memory_v2 {
    unsigned version;
    u64 total, reserved, free, used;
};

#define MEMORY_V2 (sizeof(struct memory_v2) | 2u << 24)

static int tell_memory(const struct json *told, struct memory_v2 *memory) {
    const struct json *figures = json_get(told, "memory");
    if (!json_number(json_get(figures, "total"), &memory->total)) {
        return NOT_SUPPORTED;
    }
    memory->reserved = number_in(figures, "reserved");
    memory->used = number_in(figures, "used");
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}

PUBLIC int nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory_v2 *memory) {
    ENTER(device, memory);
    if (memory->version != MEMORY_V2) {
        return ARGUMENT_VERSION_MISMATCH;
    }
    return tell_memory(device->told, memory);
}

// The first version knows of nothing reserved: that is used.
PUBLIC int nvmlDeviceGetMemoryInfo(struct device *device, struct memory *memory) {
    ENTER(device, memory);
    struct memory_v2 all;
    int code = tell_memory(device->told, &all);
    if (code == SUCCESS) {
        *memory = (struct memory){all.total, all.free, all.reserved + all.used};
    }
    return code;
}

struct utilisation {
    unsigned gpu, memory;
};

PUBLIC int nvmlDeviceGetUtilizationRates(struct device *device, struct utilisation *rates) {
    ENTER(device, rates);
    if (number_in(json_get(device->told, "mig"), "current")) {
        return NOT_SUPPORTED;  // with MIG on, the driver tells none
    }
    return tell_pair(json_get(device->told, "utilisation"), "gpu", &rates->gpu, "memory",
                     &rates->memory);
}

PUBLIC int nvmlDeviceGetTemperature(struct device *device, int sensor, unsigned *celsius) {
    ENTER(device, celsius && sensor == 0);
    return tell_unsigned(json_get(device->told, "temperature"), celsius);
}

struct temperature {
    unsigned version, sensor;
    int celsius;
};

#define TEMPERATURE_V1 (sizeof(struct temperature) | 1u << 24)

PUBLIC int nvmlDeviceGetTemperatureV(struct device *device, struct temperature *asked) {
    ENTER(device, asked && asked->sensor == 0);
    if (asked->version != TEMPERATURE_V1) {
        return ARGUMENT_VERSION_MISMATCH;
    }
    return tell_unsigned(json_get(device->told, "temperature"), (unsigned *)&asked->celsius);
}

static int tell_reasons(const struct device *device, u64 *reasons) {
    return json_number(json_get(device->told, "clocks_event_reasons"), reasons) ? SUCCESS
                                                                                : NOT_SUPPORTED;
}

PUBLIC int nvmlDeviceGetCurrentClocksEventReasons(struct device *device, u64 *reasons) {
    ENTER(device, reasons);
    return tell_reasons(device, reasons);
}

PUBLIC int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *device, u64 *reasons) {
    ENTER(device, reasons);
    return tell_reasons(device, reasons);
}

// --- Errors of the memory -------------------------------------------------------------------

PUBLIC int nvmlDeviceGetEccMode(struct device *device, unsigned *current, unsigned *pending) {
    ENTER(device, current && pending);
    return tell_pair(json_get(device->told, "ecc"), "current", current, "pending", pending);
}

PUBLIC int nvmlDeviceGetTotalEccErrors(struct device *device, unsigned type, unsigned counter,
                                       u64 *count) {
    static const char *const keys[2][2] = {
        {"corrected_volatile", "corrected_aggregate"},
        {"uncorrected_volatile", "uncorrected_aggregate"},
    };
    ENTER(device, count && type < 2 && counter < 2);
    const struct json *told = json_get(json_get(device->told, "ecc"), keys[type][counter]);
    return json_number(told, count) ? SUCCESS : NOT_SUPPORTED;
}

PUBLIC int nvmlDeviceGetRemappedRows(struct device *device, unsigned *correctable,
                                     unsigned *uncorrectable, unsigned *pending,
                                     unsigned *failed) {
    ENTER(device, correctable && uncorrectable && pending && failed);
    const struct json *rows = json_get(device->told, "remapped_rows");
    int code = tell_pair(rows, "correctable", correctable, "uncorrectable", uncorrectable);
    return code ? code : tell_pair(rows, "pending", pending, "failed", failed);
}

// --- MIG ------------------------------------------------------------------------------------

PUBLIC int nvmlDeviceGetMigMode(struct device *device, unsigned *current, unsigned *pending) {
    ENTER(device, current && pending);
    return tell_pair(json_get(device->told, "mig"), "current", current, "pending", pending);
}

// Zero where MIG is off, or where there is no MIG.
PUBLIC int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned *count) {
    ENTER(device, count);
    const struct json *mig = json_get(device->told, "mig");
    *count = number_in(mig, "current") ? (unsigned)number_in(mig, "max_slices") : 0;
    return SUCCESS;
}

PUBLIC int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned index,
                                               struct device **slice) {
    ENTER(device, slice);
    const struct json *mig = json_get(device->told, "mig");
    struct device *found = handle_at(device, index);
    if (!mig || !found) {
        return mig ? NOT_FOUND : NOT_SUPPORTED;
    }
    *slice = found;
    return SUCCESS;
}

PUBLIC int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct device *slice,
                                                        struct device **device) {
    ENTER(slice, device && slice->parent);
    *device = slice->parent;
    return SUCCESS;
}

PUBLIC int nvmlDeviceIsMigDeviceHandle(struct device *device, unsigned *is_slice) {
    ENTER(device, is_slice);
    *is_slice = device->parent != NULL;
    return SUCCESS;
}

// --- Processes ------------------------------------------------------------------------------

struct process {
    unsigned pid;
    u64 bytes;
    unsigned gpu_instance, compute_instance;
};

static unsigned instance_of(const struct json *process, const char *key) {
    unsigned instance = NO_INSTANCE;
    tell_unsigned(json_get(process, key), &instance);
    return instance;
}

// Whether a process of the device is one of this handle: all are the device's, a slice has its own.
static int is_of(const struct json *process, const struct device *device) {
    return !device->parent
        || (instance_of(process, "gpu_instance") == instance_of(device->told, "gpu_instance")
            && instance_of(process, "compute_instance")
                == instance_of(device->told, "compute_instance"));
}

// The processes of a kind. `count` is how many fit, and becomes how many there are.
static int tell_processes(const struct device *device, const char *kind, unsigned *count,
                          struct process *processes) {
    const struct json *told = device->parent ? device->parent->told : device->told;
    const struct json *all = json_get(json_get(told, "processes"), kind);
    unsigned room = *count, found = 0;
    if (!all) {
        return NOT_SUPPORTED;
    }
    for (unsigned i = 0; i < json_length(all); i++) {
        const struct json *one = json_at(all, i);
        if (!is_of(one, device)) {
            continue;
        }
        if (found < room && processes) {
            u64 bytes = ULLONG_MAX;  // not available
            json_number(json_get(one, "bytes"), &bytes);
            processes[found] = (struct process){
                (unsigned)number_in(one, "pid"), bytes, instance_of(one, "gpu_instance"),
                instance_of(one, "compute_instance")};
        }
        found++;
    }
    *count = found;
    if (found > room) {
        return INSUFFICIENT_SIZE;
    }
    return found > 0 && !processes ? INVALID_ARGUMENT : SUCCESS;
}

#define TELLS_PROCESSES(function, kind)                                                    \
    PUBLIC int function(struct device *device, unsigned *count, struct process *processes) { \
        ENTER(device, count);                                                              \
        return tell_processes(device, kind, count, processes);                             \
    }

TELLS_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
TELLS_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
TELLS_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps")

// --- Where it sits --------------------------------------------------------------------------

// A set of CPUs or NUMA nodes, as words of 64 bits.
static int tell_set(const struct json *words, unsigned long *set, unsigned size) {
    if (!words) {
        return NOT_SUPPORTED;
    }
    for (unsigned i = 0; i < size; i++) {
        u64 word = 0;
        json_number(json_at(words, i), &word);
        set[i] = (unsigned long)word;
    }
    return SUCCESS;
}

PUBLIC int nvmlDeviceGetCpuAffinity(struct device *device, unsigned size, unsigned long *set) {
    ENTER(device, size > 0 && set);
    return tell_set(json_get(device->told, "cpu_affinity"), set, size);
}

PUBLIC int nvmlDeviceGetMemoryAffinity(struct device *device, unsigned size, unsigned long *set,
                                       unsigned scope) {
    ENTER(device, size > 0 && set && scope < 2);
    return tell_set(json_get(device->told, "memory_affinity"), set, size);
}

// Enter a function of a link: the device has NVLink, and a link of this number.
static int enter_link(const struct device *device, unsigned link) {
    const struct json *nvlink = json_get(device->told, "nvlink");
    if (!nvlink) {
        return NOT_SUPPORTED;
    }
    return link < number_in(nvlink, "links") ? SUCCESS : INVALID_ARGUMENT;
}

#define ENTER_LINK(device, link, told)           \
    do {                                         \
        ENTER(device, told);                     \
        int linked = enter_link(device, link);   \
        if (linked != SUCCESS) {                 \
            return linked;                       \
        }                                        \
    } while (0)

PUBLIC int nvmlDeviceGetNvLinkState(struct device *device, unsigned link, unsigned *active) {
    ENTER_LINK(device, link, active);
    *active = link < number_in(json_get(device->told, "nvlink"), "active");
    return SUCCESS;
}

PUBLIC int nvmlDeviceGetNvLinkRemoteDeviceType(struct device *device, unsigned link,
                                               unsigned *type) {
    ENTER_LINK(device, link, type);
    return tell_unsigned(json_get(json_get(device->told, "nvlink"), "remote_type"), type);
}

// The device at the other end: the peers share the links evenly. A switch is seen as all ones.
PUBLIC int nvmlDeviceGetNvLinkRemotePciInfo_v2(struct device *device, unsigned link,
                                               struct pci_info *info) {
    ENTER_LINK(device, link, info);
    const struct json *peers = json_get(device->told, "p2p_nvlink");
    u64 peer;
    if (number_in(json_get(device->told, "nvlink"), "remote_type") == 0 && json_length(peers) > 0
        && json_number(json_at(peers, link % json_length(peers)), &peer)
        && handle_at(NULL, (unsigned)peer)) {
        return tell_pci(handle_at(NULL, (unsigned)peer)->told, info);
    }
    *info = (struct pci_info){.pci_device_id = UINT_MAX};
    put_address(info, &(struct address){UINT_MAX, 0xFF, 0xFF});
    return SUCCESS;
}

enum { P2P_PROPRIETARY = 4, P2P_UNKNOWN = 5 };

PUBLIC int nvmlDeviceGetP2PStatus(struct device *device, struct device *other, unsigned index,
                                  unsigned *status) {
    ENTER(device, status && index <= P2P_UNKNOWN);
    ENTER(other, status);
    const struct json *peers = json_get(device->told, "p2p_nvlink");
    *status = P2P_NOT_SUPPORTED;
    for (unsigned i = 0; i < json_length(peers) && index != P2P_PROPRIETARY; i++) {
        u64 peer;
        if (json_number(json_at(peers, i), &peer) && peer == place_of(other)) {
            *status = P2P_OK;
        }
    }
    return SUCCESS;
}

// --- The fabric of NVSwitches ---------------------------------------------------------------

struct fabric {
    unsigned char cluster[UUID_BYTES];
    unsigned status, clique, state;
};

struct fabric_v2 {
    unsigned version;
    struct fabric seen;
    unsigned health_mask;
};

struct fabric_v3 {
    struct fabric_v2 seen;
    unsigned char health_summary;
};

#define FABRIC_V2 (sizeof(struct fabric_v2) | 2u << 24)
#define FABRIC_V3 (sizeof(struct fabric_v3) | 3u << 24)

// The bytes of a UUID written in the usual way.
static void put_uuid(const char *text, unsigned char *bytes) {
    memset(bytes, 0, UUID_BYTES);
    for (unsigned digits = 0; text && *text && digits < 2 * UUID_BYTES; text++) {
        static const char hex[] = "0123456789abcdef";
        const char *digit = strchr(hex, *text | 0x20);
        if (digit) {
            bytes[digits / 2] |= (unsigned char)((digit - hex) << (digits % 2 ? 0 : 4));
            digits++;
        }
    }
}

static int tell_fabric(const struct device *device, struct fabric *fabric) {
    const struct json *told = json_get(device->told, "fabric");
    int code = tell_unsigned(json_get(told, "state"), &fabric->state);
    if (code == SUCCESS) {
        fabric->status = (unsigned)number_in(told, "status");
        fabric->clique = (unsigned)number_in(told, "clique_id");
        put_uuid(json_text(json_get(told, "cluster_uuid")), fabric->cluster);
    }
    return code;
}

PUBLIC int nvmlDeviceGetGpuFabricInfo(struct device *device, struct fabric *fabric) {
    ENTER(device, fabric);
    return tell_fabric(device, fabric);
}

PUBLIC int nvmlDeviceGetGpuFabricInfoV(struct device *device, struct fabric_v2 *fabric) {
    ENTER(device, fabric);
    const struct json *told = json_get(device->told, "fabric");
    if (fabric->version != FABRIC_V2 && fabric->version != FABRIC_V3) {
        return ARGUMENT_VERSION_MISMATCH;
    }
    int code = tell_fabric(device, &fabric->seen);
    if (code != SUCCESS) {
        return code;
    }
    fabric->health_mask = (unsigned)number_in(told, "health_mask");
    if (fabric->version == FABRIC_V3) {
        unsigned char summary = (unsigned char)number_in(told, "health_summary");
        ((struct fabric_v3 *)fabric)->health_summary = summary;
    }
    return SUCCESS;
}

// --- Fields ---------------------------------------------------------------------------------

struct field {
    unsigned id, scope;
    long long timestamp, latency;
    unsigned type, code;
    union {
        unsigned number;
        u64 all;
    } value;
};

PUBLIC int nvmlDeviceGetFieldValues(struct device *device, int count, struct field *fields) {
    ENTER(device, count > 0 && fields);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < count; i++) {
        const struct json *told = NULL;
        if (fields[i].id == FIELD_LINK_COUNT) {
            told = json_get(json_get(device->told, "nvlink"), "links");
        } else if (fields[i].id == FIELD_RECOVERY_ACTION) {
            told = json_get(device->told, "recovery_action");
        }
        fields[i].timestamp = now.tv_sec * 1000000LL + now.tv_nsec / 1000;
        fields[i].latency = 0;
        fields[i].type = TYPE_UNSIGNED_INT;
        fields[i].value.all = 0;
        fields[i].code = (unsigned)tell_unsigned(told, &fields[i].value.number);
    }
    return SUCCESS;
}
