// SPDX-License-Identifier: Apache-2.0
// nvidia-smi -L, as far as the NVML beside it tells. A device node that may not be opened, and a file
// in /run, which a restart of its container clears, are a device that the container was cut off from.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

typedef int (*init_t)(void);
typedef int (*count_t)(unsigned *);
typedef int (*handle_t)(unsigned, void **);
typedef int (*text_t)(void *, char *, unsigned);

int main(void) {
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    unsigned count = 0;
    if (!nvml) {
        puts("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.");
        return 12;
    }
    init_t init = (init_t)dlsym(nvml, "nvmlInit_v2");
    count_t devices = (count_t)dlsym(nvml, "nvmlDeviceGetCount_v2");
    handle_t by_index = (handle_t)dlsym(nvml, "nvmlDeviceGetHandleByIndex_v2");
    text_t name = (text_t)dlsym(nvml, "nvmlDeviceGetName");
    text_t uuid = (text_t)dlsym(nvml, "nvmlDeviceGetUUID");
    int cut_off = access("/run/cut-off", F_OK) == 0;
    // There is no such device; whether it may be opened the kernel says first.
    if (open("/dev/nvidia9", O_RDONLY) < 0 && errno == EPERM)
        cut_off = 1;
    if (cut_off || init() || devices(&count)) {
        puts("Failed to initialize NVML: Unknown Error");
        return 255;
    }
    for (unsigned index = 0; index < count; index++) {
        void *device;
        char called[96], known[96];
        if (by_index(index, &device) || name(device, called, 96) || uuid(device, known, 96))
            return 255;
        printf("GPU %u: %s (UUID: %s)\n", index, called, known);
    }
    return 0;
}
