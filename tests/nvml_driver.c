/* A stand-in for NVIDIA's libnvidia-ml.so.1: answers what a file says, which a test changes while it runs.

   Lines of the file ($FAKE_NVML), each an answer; what is not there succeeds with nothing:
     init CODE            count CODE NUMBER        handle CODE INDEX
     util CODE            use PID SM ENC DEC       memory CODE FREE
     holds PID BYTES      whole CODE SM ENC DEC */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
typedef struct { u64 total, free, used; } memory_t;
typedef struct { unsigned pid; u64 time; unsigned sm, mem, enc, dec; } sample_t;
typedef struct { unsigned pid; u64 bytes; unsigned gpu, compute; } process_t;
typedef struct { unsigned gpu, memory; } rates_t;

enum { SUCCESS = 0, INSUFFICIENT_SIZE = 7 };

/* The line of this name at this place among its like, with up to four numbers; how many it has. */
static int told(const char *name, int place, long long *numbers) {
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    char line[256], word[64];
    int found = -1;
    while (file && found < 0 && fgets(line, sizeof line, file)) {
        long long n[4] = {0, 0, 0, 0};
        int count = sscanf(line, "%63s %lld %lld %lld %lld", word, &n[0], &n[1], &n[2], &n[3]);
        if (count >= 1 && strcmp(word, name) == 0 && place-- == 0) {
            memcpy(numbers, n, sizeof n);
            found = count - 1;
        }
    }
    if (file) fclose(file);
    return found;
}

static int code(const char *name, long long *numbers) {
    memset(numbers, 0, 4 * sizeof *numbers);
    return told(name, 0, numbers) < 0 ? SUCCESS : (int)numbers[0];
}

int nvmlInitWithFlags(unsigned flags) { long long n[4]; (void)flags; return code("init", n); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { (void)error; return "as the test says"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    long long n[4];
    int failed = code("count", n);
    *count = (unsigned)n[1];
    return failed;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    long long n[4];
    *device = (void *)(size_t)(index + 1);
    for (int place = 0; told("handle", place, n) >= 0; place++)
        if (n[1] == index) return (int)n[0];
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    long long n[4];
    int failed = code("memory", n);
    (void)device;
    memory->total = 8ULL << 30;
    memory->free = n[1] ? (u64)n[1] : 4ULL << 30;
    memory->used = memory->total - memory->free;
    return failed;
}

int nvmlDeviceGetProcessUtilization(void *device, sample_t *samples, unsigned *count, u64 since) {
    long long n[4];
    int failed = code("util", n), have = 0;
    (void)device; (void)since;
    if (failed) return failed;
    while (told("use", have, n) >= 0) {
        if (samples && have < (int)*count)
            samples[have] = (sample_t){(unsigned)n[0], 7, (unsigned)n[1], 0, (unsigned)n[2], (unsigned)n[3]};
        have++;
    }
    *count = (unsigned)have;
    return samples || !have ? SUCCESS : INSUFFICIENT_SIZE;
}

static int listed(process_t *processes, unsigned *count) {
    long long n[4];
    int have = 0;
    while (told("holds", have, n) >= 0) {
        if (processes && have < (int)*count)
            processes[have] = (process_t){(unsigned)n[0], (u64)n[1], 0, 0};
        have++;
    }
    *count = (unsigned)have;
    return processes || !have ? SUCCESS : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_t *processes) {
    (void)device;
    return listed(processes, count);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, process_t *processes) {
    (void)device; (void)processes;
    *count = 0;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, rates_t *rates) {
    long long n[4];
    int failed = code("whole", n);
    (void)device;
    *rates = (rates_t){(unsigned)n[1], 0};
    return failed;
}

int nvmlDeviceGetEncoderUtilization(void *device, unsigned *percent, unsigned *period) {
    long long n[4];
    int failed = code("whole", n);
    (void)device;
    *percent = (unsigned)n[2];
    *period = 1;
    return failed;
}

int nvmlDeviceGetDecoderUtilization(void *device, unsigned *percent, unsigned *period) {
    long long n[4];
    int failed = code("whole", n);
    (void)device;
    *percent = (unsigned)n[3];
    *period = 1;
    return failed;
}
