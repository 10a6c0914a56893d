// A double of libcudart over POSIX shared memory, for tests on machines without a GPU. Two devices; a handle is the text
// "DEVICE:NAME" of an object of shm_open. It is as strict as the real one is where Podium could be wrong:
//
//   - every thread has a current device of its own, and nothing is found on another one;
//   - a copy to the device is only staged: its bytes arrive when the stream is synchronised;
//   - a thread that has not said that it does not care disturbs a capture that is always going on (900);
//   - an error stays behind as the thread's last one until it is asked for; after 700 everything fails on that device.
//
// CUDART_DOUBLE, as it is when the library is loaded, names a folder. Lines "CALL NUMBER" of its file `faults` make calls fail; opens and closes go to its file `log`.
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEVICES 2
#define MOST 256
#define LAST_STICKY 719
#define FIRST_STICKY 700

struct Handle {
  char text[64];
};
struct Mapping {
  char text[64];
  char* base;
  size_t size;
  int device, opened;
};
struct Staged {
  char* to;
  char* bytes;
  size_t size;
  int device;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Mapping mappings[MOST];
static Staged staged[MOST];
static int staged_count;
static int lost[DEVICES];
static __thread int current_device, capture_mode, last_error;

static char folder[3840];

// when it is loaded: what a test leaves behind must not speak into the folder of the next one
__attribute__((constructor)) static void begin() {
  const char* given = getenv("CUDART_DOUBLE");
  if (given != NULL) snprintf(folder, sizeof folder, "%s", given);
}

static FILE* in_folder(const char* name, const char* mode) {
  char path[4096];
  if (folder[0] == 0) return NULL;
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return fopen(path, mode);
}

static void say(const char* what, const char* text) {
  FILE* log = in_folder("log", "a");
  if (log == NULL) return;
  fprintf(log, "%s %.64s\n", what, text);
  fclose(log);
}

static int fault(const char* call) {
  char line[128], name[64];
  int number, found = 0;
  FILE* faults = in_folder("faults", "r");
  if (faults == NULL) return 0;
  while (fgets(line, sizeof line, faults) != NULL)
    if (sscanf(line, "%63s %d", name, &number) == 2 && strcmp(name, call) == 0) found = number;
  fclose(faults);
  return found;
}

// what a call ends with; `careful` where a capture would be disturbed
static int ended(const char* call, int status, int careful) {
  if (status == 0) status = fault(call);
  if (status == 0 && careful && capture_mode != 2) status = 900;
  if (status >= FIRST_STICKY && status <= LAST_STICKY) lost[current_device] = status;
  if (lost[current_device]) status = lost[current_device];
  if (status) last_error = status;
  return status;
}

static Mapping* mapping_at(const char* address, size_t size, int device) {
  for (int i = 0; i < MOST; i++) {
    Mapping* each = &mappings[i];
    if (each->opened && each->device == device && address >= each->base && address + size <= each->base + each->size)
      return each;
  }
  return NULL;
}

static void arrive() {
  for (int i = 0; i < staged_count; i++) {
    if (mapping_at(staged[i].to, staged[i].size, staged[i].device)) memcpy(staged[i].to, staged[i].bytes, staged[i].size);
    free(staged[i].bytes);
  }
  staged_count = 0;
}

extern "C" {

const char* cudaGetErrorString(int error) {
  switch (error) {
    case 1:
      return "invalid argument";
    case 35:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case 101:
      return "invalid device ordinal";
    case 400:
      return "invalid resource handle";
    case 700:
      return "an illegal memory access was encountered";
    case 900:
      return "operation not permitted when stream is capturing";
    default:
      return NULL;
  }
}

int cudaGetLastError() {
  int error = lost[current_device] ? lost[current_device] : last_error;
  last_error = 0;
  return error;
}

int cudaPeekAtLastError() { return lost[current_device] ? lost[current_device] : last_error; }

int cudaGetDeviceCount(int* count) {
  FILE* none = in_folder("no-devices", "r");
  if (none != NULL) fclose(none);
  *count = none == NULL ? DEVICES : 0;
  return ended("cudaGetDeviceCount", 0, 0);
}

int cudaSetDevice(int device) {
  if (device < 0 || device >= DEVICES) return last_error = 101;
  current_device = device;
  return ended("cudaSetDevice", 0, 0);
}

int cudaThreadExchangeStreamCaptureMode(int* mode) {
  int before = capture_mode;
  capture_mode = *mode;
  *mode = before;
  return 0;
}

int cudaIpcOpenMemHandle(void** address, Handle handle, unsigned flags) {
  int device, fd, status = ended("cudaIpcOpenMemHandle", flags == 1 ? 0 : 1, 1);
  char name[80] = "/";
  struct stat found;
  if (status) return status;
  if (handle.text[63] != 0 || sscanf(handle.text, "%d:%62s", &device, name + 1) != 2 || device != current_device)
    return ended("", 400, 1);
  pthread_mutex_lock(&lock);
  Mapping* free_one = NULL;
  for (int i = 0; i < MOST; i++) {
    if (mappings[i].opened && strcmp(mappings[i].text, handle.text) == 0) {
      mappings[i].opened++;
      *address = mappings[i].base;
      say("open", handle.text);
      pthread_mutex_unlock(&lock);
      return 0;
    }
    if (!mappings[i].opened && free_one == NULL) free_one = &mappings[i];
  }
  status = 400;
  if (free_one != NULL && (fd = shm_open(name, O_RDWR, 0)) >= 0) {
    void* base = MAP_FAILED;
    if (fstat(fd, &found) == 0) base = mmap(NULL, (size_t)found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (base != MAP_FAILED) {
      memcpy(free_one->text, handle.text, 64);
      free_one->base = (char*)base;
      free_one->size = (size_t)found.st_size;
      free_one->device = device;
      free_one->opened = 1;
      *address = base;
      say("open", handle.text);
      status = 0;
    }
  }
  pthread_mutex_unlock(&lock);
  return ended("", status, 1);
}

int cudaIpcCloseMemHandle(void* address) {
  int status = ended("cudaIpcCloseMemHandle", 0, 1);
  if (status) return status;
  pthread_mutex_lock(&lock);
  Mapping* found = mapping_at((char*)address, 0, current_device);
  if (found == NULL || found->base != address) {
    status = 1;
  } else {
    say("close", found->text);
    if (--found->opened == 0) munmap(found->base, found->size);
  }
  pthread_mutex_unlock(&lock);
  return ended("", status, 1);
}

int cudaMemcpy(void* to, const void* from, size_t size, int kind) {
  int status = ended(kind == 1 ? "to_device" : "to_host", 0, 1);
  if (status) return status;
  const char* on_device = kind == 1 ? (const char*)to : (const char*)from;
  pthread_mutex_lock(&lock);
  if ((kind != 1 && kind != 2) || mapping_at(on_device, size, current_device) == NULL) {
    status = 1;
  } else if (kind == 2) {
    arrive();
    memcpy(to, from, size);
  } else {
    if (staged_count == MOST) arrive();
    Staged* one = &staged[staged_count++];
    one->to = (char*)to;
    one->bytes = (char*)malloc(size + 1);
    one->size = size;
    one->device = current_device;
    memcpy(one->bytes, from, size);
  }
  pthread_mutex_unlock(&lock);
  return ended("", status, 1);
}

int cudaStreamSynchronize(void* stream) {
  int status = ended("cudaStreamSynchronize", stream == NULL ? 0 : 400, 1);
  if (status) return status;
  pthread_mutex_lock(&lock);
  arrive();
  pthread_mutex_unlock(&lock);
  return 0;
}

static int address_range(unsigned long long* base, size_t* size, unsigned long long address) {
  int status = ended("cuMemGetAddressRange", 0, 0);
  if (status) return status;
  pthread_mutex_lock(&lock);
  Mapping* found = mapping_at((char*)address, 1, current_device);
  if (found != NULL) {
    *base = (unsigned long long)found->base;
    *size = found->size;
  }
  pthread_mutex_unlock(&lock);
  return ended("", found == NULL ? 500 : 0, 0);
}

#ifdef BEFORE_12_5
int cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long flags, int* found) {
#else
int cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned version, unsigned long long flags,
                                     int* found) {
  if (version < 3020) return ended("", 1, 0);
#endif
  if (flags != 0) return ended("", 1, 0);
  // an old driver: the call succeeds, and there is no such function
  int unknown = strcmp(symbol, "cuMemGetAddressRange") != 0 || fault("no_range");
  *found = unknown ? 1 : 0;
  *function = unknown ? NULL : (void*)address_range;
  return ended("cudaGetDriverEntryPoint", 0, 0);
}

}  // extern "C"
