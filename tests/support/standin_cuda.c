/* The calls of libcuda that llmos.lib.cuda makes, over POSIX shared memory: for machines without a
 * GPU, to test who owns, maps and frees what, and how arguments are passed. One "device". */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST 64
typedef struct { char reserved[64]; } Handle;
static struct { uint64_t at; size_t size; char name[64]; int mine; } known[MOST];
static int made;
static __thread int depth;

static int find(uint64_t at) {
  for (int i = 0; i < MOST; i++)
    if (at && known[i].at == at) return i;
  return -1;
}
static int keep(int fd, size_t size, const char *name, int mine, uint64_t *at) {
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  for (int i = 0; i < MOST && memory != MAP_FAILED; i++)
    if (!known[i].at) {
      known[i].at = *at = (uint64_t)memory, known[i].size = size, known[i].mine = mine;
      snprintf(known[i].name, sizeof known[i].name, "%s", name);
      return 0;
    }
  return 2;
}
int cuInit(unsigned flags) { return flags; }
int cuGetErrorString(int code, const char **text) { return *text = code == 2 ? "out of memory" : "no", 0; }
int cuDeviceGet(int *device, int number) { return *device = number, number ? 101 : 0; }
int cuDeviceGetPCIBusId(char *text, int size, int device) {
  return snprintf(text, size, "0000:00:1%d.0", device), 0;
}
int cuDeviceGetByPCIBusId(int *device, const char *text) {
  return *device = 0, strcmp(text, "0000:00:10.0") ? 101 : 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)16, device; }
int cuCtxPushCurrent_v2(void *context) { return depth++, context != (void *)16; }
int cuCtxPopCurrent_v2(void **context) { return *context = (void *)16, depth-- < 1; }
int cuCtxSynchronize(void) { return depth < 1; }
int cuMemAlloc_v2(uint64_t *at, size_t size) {
  char name[64];
  if (depth < 1 || size > (size_t)1 << 30) return 2;
  snprintf(name, sizeof name, "/standin-cuda-%d-%d", getpid(), ++made);
  int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
  return fd < 0 || ftruncate(fd, size) ? 2 : keep(fd, size, name, 1, at);
}
int cuMemsetD8_v2(uint64_t at, unsigned char byte, size_t size) {
  return memset((void *)at, byte, size), depth < 1;
}
int cuMemFree_v2(uint64_t at) {
  int i = find(at);
  if (depth < 1 || i < 0 || !known[i].mine) return 1;
  shm_unlink(known[i].name);
  return known[i].at = 0, munmap((void *)at, known[i].size);
}
int cuIpcGetMemHandle(Handle *handle, uint64_t at) {
  int i = find(at);
  if (depth < 1 || i < 0 || !known[i].mine) return 1;
  memcpy(handle->reserved, known[i].name, sizeof handle->reserved);
  return 0;
}
int cuIpcOpenMemHandle_v2(uint64_t *at, Handle handle, unsigned flags) {
  struct stat about;
  int fd = depth < 1 || flags != 1 ? -1 : shm_open(handle.reserved, O_RDWR, 0);
  return fd < 0 || fstat(fd, &about) ? 1 : keep(fd, about.st_size, handle.reserved, 0, at);
}
int cuIpcCloseMemHandle(uint64_t at) {
  int i = find(at);
  if (depth < 1 || i < 0 || known[i].mine) return 1;
  return known[i].at = 0, munmap((void *)at, known[i].size);
}
int cuMemGetAddressRange_v2(uint64_t *base, size_t *size, uint64_t at) {
  int i = find(at);
  if (base) *base = at;
  return i < 0 ? 1 : (*size = known[i].size, 0);
}
