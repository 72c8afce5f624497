/* Stands between a node and the C library: the wall clock may be wrong, and the disk may fail.
 *
 * Loaded with LD_PRELOAD. CHAOS_PAGE names a file of one page that the harness writes while the node runs;
 * CHAOS_DISK is the folder whose files the disk's faults concern. Without the page nothing changes.
 * The monotonic clock is never touched: no kernel ever does that.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Fields of the page, in the order of `shim.rs`. */
enum field {
  WALL_OFFSET_NS,
  WALL_DRIFT_PPM,
  WALL_DRIFT_SINCE_NS, /* of the monotonic clock */
  WRITE_EIO_PPM,
  SYNC_EIO_PPM,
  SYNC_DELAY_US,
  WRITE_DELAY_US,
  WRITE_ENOSPC,
  WRITE_TORN,
  INJECTED, /* counted here */
  FIELDS
};

static volatile int64_t *page;
static char disk[PATH_MAX];
static size_t disk_length;
static uint64_t chance = 0x2545f4914f6cdd1dULL;

static int (*real_clock)(clockid_t, struct timespec *);

#define REAL(name)                                                                                 \
  static __typeof__(name) *real;                                                                   \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
  real_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  const char *file = getenv("CHAOS_PAGE"), *folder = getenv("CHAOS_DISK");
  if (!file) return;
  int fd = open(file, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (mapped == MAP_FAILED) return;
  if (folder && strlen(folder) < sizeof disk) {
    strcpy(disk, folder);
    disk_length = strlen(folder);
  }
  page = mapped;
}

/* ---- the wall clock ---- */

static int64_t in_ns(const struct timespec *time) {
  return time->tv_sec * 1000000000LL + time->tv_nsec;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  if (!real_clock) return (int)syscall(SYS_clock_gettime, clock, time);
  int failed = real_clock(clock, time);
  if (failed || !page || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return failed;
  int64_t wall = in_ns(time) + page[WALL_OFFSET_NS];
  if (page[WALL_DRIFT_PPM]) {
    struct timespec now;
    real_clock(CLOCK_MONOTONIC, &now);
    int64_t since = in_ns(&now) - page[WALL_DRIFT_SINCE_NS];
    wall += (int64_t)((__int128)since * page[WALL_DRIFT_PPM] / 1000000);
  }
  time->tv_sec = wall / 1000000000LL;
  time->tv_nsec = wall % 1000000000LL;
  return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  (void)zone;
  struct timespec now;
  int failed = clock_gettime(CLOCK_REALTIME, &now);
  time->tv_sec = now.tv_sec;
  time->tv_usec = now.tv_nsec / 1000;
  return failed;
}

time_t time(time_t *into) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (into) *into = now.tv_sec;
  return now.tv_sec;
}

/* ---- the disk ---- */

static int hits(int64_t ppm) {
  if (ppm <= 0) return 0;
  chance ^= chance << 13;
  chance ^= chance >> 7;
  chance ^= chance << 17;
  return (int64_t)(chance % 1000000) < ppm;
}

static int is_ours(int fd) {
  if (!page || !disk_length) return 0;
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return strncmp(path, disk, disk_length) == 0;
}

static int injected(int error) {
  __sync_fetch_and_add(&page[INJECTED], 1);
  errno = error;
  return -1;
}

/* A machine that loses its power while a write is under way: some of its sectors are on the disk,
 * others are not, and nothing comes after it. */
static void tear(int fd, const char *bytes, size_t count, off64_t at) {
  const size_t sector = 512;
  struct timespec now;
  if (!page[WRITE_TORN] || count <= sector || !is_ours(fd)) return;
  __sync_fetch_and_add(&page[INJECTED], 1);
  page[WRITE_TORN] = 0;
  real_clock(CLOCK_MONOTONIC, &now);
  chance ^= (uint64_t)now.tv_nsec << 20;
  /* The first differs from the last, so that it is torn for sure. */
  hits(1);
  int first = (int)(chance & 1);
  for (size_t from = 0; from < count; from += sector) {
    size_t length = count - from < sector ? count - from : sector;
    int written = from == 0 ? first : from + sector >= count ? !first : hits(500000);
    if (written) syscall(SYS_pwrite64, fd, bytes + from, length, at + (off64_t)from);
  }
  syscall(SYS_kill, getpid(), 9);
}

/* -1 with errno if the write fails. */
static int before_write(int fd) {
  if (!page || !(page[WRITE_EIO_PPM] || page[WRITE_ENOSPC] || page[WRITE_DELAY_US])) return 0;
  if (!is_ours(fd)) return 0;
  if (page[WRITE_DELAY_US]) {
    __sync_fetch_and_add(&page[INJECTED], 1);
    usleep((useconds_t)page[WRITE_DELAY_US]);
  }
  if (page[WRITE_ENOSPC]) return injected(ENOSPC);
  if (hits(page[WRITE_EIO_PPM])) return injected(EIO);
  return 0;
}

static int before_sync(int fd) {
  if (!page || !(page[SYNC_EIO_PPM] || page[SYNC_DELAY_US])) return 0;
  if (!is_ours(fd)) return 0;
  /* Looked at again and again, so that a stall ends when the harness heals it. */
  for (int64_t waited = 0; waited < page[SYNC_DELAY_US]; waited += 1000) {
    if (waited == 0) __sync_fetch_and_add(&page[INJECTED], 1);
    usleep(1000);
  }
  if (hits(page[SYNC_EIO_PPM])) return injected(EIO);
  return 0;
}

ssize_t write(int fd, const void *bytes, size_t count) {
  REAL(write);
  return before_write(fd) ? -1 : real(fd, bytes, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
  REAL(pwrite64);
  if (page) tear(fd, bytes, count, at);
  return before_write(fd) ? -1 : real(fd, bytes, count, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
  return pwrite64(fd, bytes, count, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  return before_write(fd) ? -1 : real(fd, parts, count);
}

int fsync(int fd) {
  REAL(fsync);
  return before_sync(fd) ? -1 : real(fd);
}

int fdatasync(int fd) {
  REAL(fdatasync);
  return before_sync(fd) ? -1 : real(fd);
}

int sync_file_range(int fd, off64_t from, off64_t count, unsigned int flags) {
  REAL(sync_file_range);
  return before_sync(fd) ? -1 : real(fd, from, count, flags);
}
