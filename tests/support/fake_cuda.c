/* Stands in for NVIDIA's libraries: device memory is taken from the host and counted, kernels do
   nothing. One library a symbol: compiled with -DDRIVER, -DRUNTIME, -DCUBLAS or -DCUDNN; what has no
   definition here is generated as a function that returns success (see fake_cuda.py).

   FAKE_CUDA_DEVICES: how many devices there are, 1 if unset.
   FAKE_CUDA_BYTES: what each of them has.
   FAKE_CUDA_CALLS: a file that gets a line for each call that matters, in order. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
enum { DEVICES = 8, HOST_TO_DEVICE = 1, DEVICE_TO_HOST = 2, IS_DEVICE_MEMORY = 2 };

void fake_say(const char *format, ...);
void *fake_take(size_t size);
int fake_give(void *pointer);
int fake_device_of(const void *pointer);
int fake_devices(void);
int fake_current(void);
void fake_use(int device);
void fake_memory(size_t *free_bytes, size_t *total);

#ifdef DRIVER
#include <pthread.h>
static u64 total_bytes(void) {
  const char *text = getenv("FAKE_CUDA_BYTES");
  return text ? strtoull(text, NULL, 10) : 100000000000ull;
}
static struct { char *start; size_t size; int device; } held[1 << 16];
static int count;
static u64 used[DEVICES];
static __thread int current;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void fake_say(const char *format, ...) {
  const char *name = getenv("FAKE_CUDA_CALLS");
  FILE *file = name ? fopen(name, "a") : NULL;
  if (!file) return;
  va_list rest;
  va_start(rest, format);
  vfprintf(file, format, rest);
  va_end(rest);
  fputc('\n', file);
  fclose(file);
}
void *fake_take(size_t size) {
  if (size > total_bytes() - used[current]) return NULL;
  char *start = aligned_alloc(256, (size + 256) / 256 * 256);
  if (!start) return NULL;
  pthread_mutex_lock(&lock);
  held[count].start = start, held[count].size = size, held[count++].device = current;
  used[current] += size;
  pthread_mutex_unlock(&lock);
  fake_say("malloc %zu on %d", size, current);
  return start;
}
int fake_give(void *pointer) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < count; i++)
    if (held[i].start == pointer) {
      used[held[i].device] -= held[i].size;
      held[i] = held[--count];
      break;
    }
  pthread_mutex_unlock(&lock);
  free(pointer);
  return 0;
}
int fake_device_of(const void *pointer) {
  int found = -1;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < count && found < 0; i++)
    if ((char *)pointer >= held[i].start && (char *)pointer < held[i].start + held[i].size)
      found = held[i].device;
  pthread_mutex_unlock(&lock);
  return found;
}
int fake_devices(void) {
  const char *text = getenv("FAKE_CUDA_DEVICES");
  int n = text ? atoi(text) : 1;
  return n > DEVICES ? DEVICES : n;
}
int fake_current(void) { return current; }
void fake_use(int device) { current = device; }
void fake_memory(size_t *free_bytes, size_t *total) {
  *total = total_bytes(), *free_bytes = *total - used[current];
}
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = fake_devices(); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal >= fake_devices() ? 101 : 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = (void *)(size_t)(device + 1);
  return device >= fake_devices() ? 101 : 0;
}
static __thread int stack[16], depth;
int cuCtxPushCurrent_v2(void *context) {
  stack[depth++] = current, current = (int)(size_t)context - 1;
  return 0;
}
int cuCtxPopCurrent_v2(void **context) { current = stack[--depth]; return 0; }
int cuMemAlloc_v2(u64 *address, size_t n) {
  *address = (u64)fake_take(n);
  return *address ? 0 : 2;
}
int cuMemFree_v2(u64 address) { return fake_give((void *)address); }
int cuMemcpyHtoD_v2(u64 to, const void *from, size_t n) {
  fake_say("copy %zu to device", n);
  memcpy((void *)to, from, n);
  return 0;
}
int cuCtxSetCurrent(void *context) { current = (int)(size_t)context - 1; return 0; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { fake_memory(free_bytes, total); return 0; }
#endif

#ifdef RUNTIME
/* cudaDeviceProp as CUDA 13 lays it out, as far as it is read. */
struct properties {
  char name[256], uuid[16], luid[8];
  unsigned luid_mask;
  size_t global_bytes, shared_bytes;
  int registers, warp;
  size_t pitch;
  int threads, thread_sizes[3], grid_sizes[3];
  size_t constant_bytes;
  int major, minor;
  size_t texture_alignment, texture_pitch_alignment;
  int multiprocessors;
};
struct attributes { int type, device; void *on_device, *on_host; };
static int last;

int cudaMalloc(void **p, size_t n) { *p = fake_take(n); return *p ? 0 : (last = 2); }
int cudaMallocAsync(void **p, size_t n, void *stream) { return cudaMalloc(p, n); }
int cudaMallocFromPoolAsync(void **p, size_t n, void *pool, void *stream) { return cudaMalloc(p, n); }
int cudaFree(void *p) { return p ? fake_give(p) : 0; }
int cudaFreeAsync(void *p, void *stream) { return cudaFree(p); }
int cudaMallocHost(void **p, size_t n) { *p = aligned_alloc(256, (n + 256) / 256 * 256); return 0; }
int cudaHostAlloc(void **p, size_t n, unsigned flags) { return cudaMallocHost(p, n); }
int cudaFreeHost(void *p) { free(p); return 0; }
int cudaMemcpy(void *to, const void *from, size_t n, int kind) {
  fake_say("copy %zu kind %d", n, kind);
  memmove(to, from, n);
  return 0;
}
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) {
  fake_say("copy %zu kind %d on %p", n, kind, stream);
  memmove(to, from, n);
  return 0;
}
int cudaMemset(void *p, int value, size_t n) { memset(p, value, n); return 0; }
int cudaMemsetAsync(void *p, int value, size_t n, void *stream) { memset(p, value, n); return 0; }
int cudaMemGetInfo(size_t *free_bytes, size_t *total) { fake_memory(free_bytes, total); return 0; }
int cudaGetDeviceCount(int *n) { *n = fake_devices(); return *n ? 0 : 100; }
int cudaGetDevice(int *device) { *device = fake_current(); return 0; }
int cudaSetDevice(int device) {
  if (device < 0 || device >= fake_devices()) return last = 101;
  fake_use(device);
  return 0;
}
int cudaGetLastError(void) { int was = last; last = 0; return was; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaGetDeviceProperties(struct properties *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "stand-in");
  p->global_bytes = 100000000000ull, p->shared_bytes = 49152, p->constant_bytes = 65536;
  p->registers = 65536, p->warp = 32, p->threads = 1024;
  p->major = 9, p->multiprocessors = 132;
  return 0;
}
int cudaGetDeviceProperties_v2(struct properties *p, int device) { return cudaGetDeviceProperties(p, device); }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  enum { WARP = 10, MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76 };
  *value = attribute == MAJOR ? 9 : attribute == MINOR ? 0 : attribute == MULTIPROCESSORS ? 132
         : attribute == WARP ? 32 : 1024;
  return 0;
}
int cudaPointerGetAttributes(struct attributes *found, void *p) {
  int device = fake_device_of(p);
  memset(found, 0, sizeof *found);
  if (device < 0) found->on_host = p;
  else found->type = IS_DEVICE_MEMORY, found->device = device, found->on_device = p;
  return 0;
}
static int made(const char *what, void **handle) {
  *handle = malloc(64);
  fake_say("%s %p", what, *handle);
  return 0;
}
int cudaStreamCreate(void **s) { return made("new stream", s); }
int cudaStreamCreateWithFlags(void **s, unsigned flags) { return made("new stream", s); }
int cudaStreamCreateWithPriority(void **s, unsigned flags, int priority) { return made("new stream", s); }
int cudaStreamSynchronize(void *s) { fake_say("wait for stream %p", s); return 0; }
int cudaDeviceSynchronize(void) { fake_say("wait for device %d", fake_current()); return 0; }
int cudaStreamWaitEvent(void *s, void *event, unsigned flags) { fake_say("stream %p waits for %p", s, event); return 0; }
int cudaEventCreate(void **e) { return made("new event", e); }
int cudaEventCreateWithFlags(void **e, unsigned flags) { return made("new event", e); }
int cudaEventRecord(void *e, void *s) { fake_say("event %p in %p", e, s); return 0; }
int cudaLaunchKernel(const void *f, u64 a, unsigned b, u64 c, unsigned d, void **args, size_t n, void *s) {
  return 0;
}
int cudaStreamBeginCapture(void *s, int mode) { fake_say("capture"); return 0; }
int cudaStreamEndCapture(void *s, void **graph) { *graph = malloc(8); return 0; }
int cudaStreamIsCapturing(void *s, int *status) { *status = 0; return 0; }
int cudaGraphInstantiate(void **exec, void *graph, u64 flags) { *exec = malloc(8); return 0; }
int cudaGraphLaunch(void *exec, void *s) { fake_say("launch graph"); return 0; }
const char *cudaGetErrorString(int e) {
  return e == 101 ? "invalid device ordinal" : e == 2 ? "out of memory" : "an error";
}
const char *cudaGetErrorName(int e) {
  return e == 101 ? "cudaErrorInvalidDevice" : e == 2 ? "cudaErrorMemoryAllocation" : "cudaError";
}
void **__cudaRegisterFatBinary(void *binary) { return malloc(8); }
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n) { *n = 4; return 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n) { *n = 4; return 0; }
#endif

#ifdef CUBLAS
int cublasCreate_v2(void **handle) { *handle = malloc(64); return 0; }
int cublasLtCreate(void **handle) { *handle = malloc(64); return 0; }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
int cublasSetMathMode(void *handle, int mode) { fake_say("math mode %d", mode); return 0; }
#endif

#ifdef CUDNN
/* The bytes that cuDNN asks for an LSTM's weights are its own affair; here they are 4 MB. */
int cudnnCreate(void **handle) { *handle = malloc(64); return 0; }
size_t cudnnGetVersion(void) { return 91900; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int status) { return "an error"; }
int cudnnDropoutGetStatesSize(void *handle, size_t *n) { *n = 1 << 10; return 0; }
int cudnnGetRNNWeightSpaceSize(void *handle, void *d, size_t *n) { *n = 4000000; return 0; }
int cudnnGetRNNWeightParams(void *handle, void *d, int layer, size_t n, void *weights, int id,
                            void *md, void **matrix, void *bd, void **bias) {
  *matrix = weights, *bias = weights;
  return 0;
}
int cudnnGetTensorNdDescriptor(void *d, int n, int *dtype, int *rank, int *sizes, int *strides) {
  *dtype = 0, *rank = n;
  for (int i = 0; i < n; i++) sizes[i] = strides[i] = 1;
  return 0;
}
int cudnnGetFilterNdDescriptor(void *d, int n, int *dtype, int *format, int *rank, int *sizes) {
  *dtype = 0, *format = 0, *rank = n;
  for (int i = 0; i < n; i++) sizes[i] = 1;
  return 0;
}
int cudnnGetRNNTempSpaceSizes(void *handle, void *d, int mode, void *x, size_t *work, size_t *reserve) {
  *work = 1 << 20, *reserve = 0;
  return 0;
}
#endif
