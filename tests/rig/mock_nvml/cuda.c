// SPDX-License-Identifier: Apache-2.0
// As much of the CUDA driver as tells whether CUDA would start: cuInit answers from the profile.
#include "json.h"

#include <stddef.h>

#define PUBLIC __attribute__((visibility("default")))

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, NO_DEVICE = 100 };

static const struct {
    int code;
    const char *name, *text;
} errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
     "system has unsupported display driver / cuda driver combination"},
    {804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
     "forward compatibility was attempted on non supported HW"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static struct json *profile;

PUBLIC int cuInit(unsigned flags) {
    if (flags != 0) {
        return INVALID_VALUE;
    }
    json_free(profile);
    profile = json_profile();
    unsigned long long code = profile && json_length(json_get(profile, "devices")) ? 0 : NO_DEVICE;
    json_number(json_get(json_get(profile, "cuda"), "init"), &code);
    if (code != SUCCESS) {
        json_free(profile);
        profile = NULL;
    }
    return (int)code;
}

PUBLIC int cuDeviceGetCount(int *count) {
    if (!profile || !count) {
        return profile ? INVALID_VALUE : NOT_INITIALIZED;
    }
    *count = (int)json_length(json_get(profile, "devices"));
    return SUCCESS;
}

// The version is known before cuInit, and also where that fails.
PUBLIC int cuDriverGetVersion(int *version) {
    struct json *own = json_profile();
    unsigned long long told = 0;
    int known = json_number(json_get(own, "cuda_driver_version"), &told);
    json_free(own);
    if (!version || !known) {
        return INVALID_VALUE;
    }
    *version = (int)told;
    return SUCCESS;
}

PUBLIC int cuGetErrorName(int code, const char **name) {
    for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++) {
        if (errors[i].code == code) {
            *name = errors[i].name;
            return SUCCESS;
        }
    }
    *name = NULL;
    return INVALID_VALUE;
}

PUBLIC int cuGetErrorString(int code, const char **text) {
    for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++) {
        if (errors[i].code == code) {
            *text = errors[i].text;
            return SUCCESS;
        }
    }
    *text = NULL;
    return INVALID_VALUE;
}
