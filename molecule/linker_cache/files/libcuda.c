// SPDX-License-Identifier: Apache-2.0
// A libcuda that gives one answer: what a stub, or one for compatibility, says; SLOW waits first.
#include <unistd.h>

int cuInit(unsigned flags) {
    (void)flags;
#ifdef SLOW
    sleep(SLOW);
#endif
    return ANSWER;
}

int cuGetErrorString(int code, const char **text) {
    (void)code;
    *text = "as this library is made to say";
    return 0;
}
