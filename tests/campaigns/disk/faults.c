/* A file system that fails on command, below every library of a process: by LD_PRELOAD.

   Calls that change what lies under one folder are counted and told; from a given one on, or at it
   alone, calls of chosen kinds fail with a chosen error, or write less than they were given. Looks
   for names that other processes left there can miss them, as on another machine of a network.
   `layer.py` builds it and says what the kinds are. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { CREATE = 1, WRITE = 2, RENAME = 4, FOLDER = 8, LINK = 16, SYNC = 32, SIZE = 64, REMOVE = 128,
       MODE = 256, LOCK = 512, SYNC_FOLDER = 1024, LOOK = 2048, LIST = 4096 };
enum { ONCE = 0, FROM_THEN_ON = 1, HALF_FIRST = 2, SHORT = 3, UNSEEN = 4 };

static char root[PATH_MAX], unseen[PATH_MAX];
static size_t root_length;
static int failing_kinds, failing_error, how, told_to = -1;
static long first_failing, calls;
static struct timespec began;

/* Of calls under `folder` those of `kinds` fail with `error` from number `first` on (0: none);
   each is told on the descriptor `tell`: number, kind, whether it failed, path. Looks are calls
   where `kinds` has them. */
void faults_begin(const char *folder, int kinds, int error, long first, int manner, int tell) {
  failing_kinds = kinds, failing_error = error, first_failing = first, how = manner;
  told_to = tell, calls = 0;
  root_length = 0, unseen[0] = 0;
  /* The clock that files are dated by. */
  clock_gettime(CLOCK_REALTIME_COARSE, &began);
  strncpy(root, folder, PATH_MAX - 1);
  root_length = strlen(root);
}

void faults_end(void) { root_length = 0; }

/* Where a path leads, as text; empty where that cannot be told. */
static void locate(char *place, int at, const char *path) {
  char link[64];
  ssize_t length = 0;
  place[0] = 0;
  if (!path || path[0] != '/') {
    if (at == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    length = readlink(link, place, PATH_MAX - 1);
    if (length < 0) length = 0;
    place[length] = 0;
    if (!path || !length) return;
    place[length++] = '/';
  }
  strncpy(place + length, path, PATH_MAX - 1 - length);
  place[PATH_MAX - 1] = 0;
}

static int is_in(const char *folder, const char *place) {
  size_t length = strlen(folder);
  return length && !strncmp(place, folder, length) && (!place[length] || place[length] == '/');
}

/* 0: goes on; -1: fails, with errno set; 1: writes half. */
static int fate_of(int kind, const char *place) {
  if (!root_length || !is_in(root, place)) return 0;
  long number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
  if (how == UNSEEN && number == first_failing) strcpy(unseen, place);
  int fate = 0;
  if (first_failing && number >= first_failing && (kind & failing_kinds)) {
    if (how == SHORT) fate = 1;
    else if (how == UNSEEN) fate = is_in(unseen, place) ? -1 : 0;
    else if (how == HALF_FIRST && number == first_failing && kind == WRITE) fate = 1;
    else if (how != ONCE || number == first_failing) fate = -1;
  }
  if (told_to >= 0) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld\t%d\t%d\t%s\n", number, kind, fate, place);
    syscall(SYS_write, told_to, line, length);
  }
  if (fate < 0) errno = failing_error;
  return fate;
}

static int fate_at(int kind, int at, const char *path) {
  char place[PATH_MAX];
  if (!root_length) return 0;
  locate(place, at, path);
  return fate_of(kind, place);
}

static int fate_of_file(int kind, int file) { return fate_at(kind, file, NULL); }

/* Whether a name is there that this process has neither given nor changed what it stands for. */
static int is_of_others(const char *place) {
  struct stat state;
  if (syscall(SYS_newfstatat, AT_FDCWD, place, &state, AT_SYMLINK_NOFOLLOW)) return 0;
  if (state.st_ctim.tv_sec != began.tv_sec) return state.st_ctim.tv_sec < began.tv_sec;
  return state.st_ctim.tv_nsec < began.tv_nsec;
}

/* Whether a name below the folder is not to be seen yet. */
static int is_missed(int kind, const char *place) {
  int before = errno, missed = 0;
  if (is_in(root, place) && place[root_length] && is_of_others(place))
    missed = fate_of(kind, place) < 0;
  if (!missed) errno = before;
  return missed;
}

static int is_missed_at(int at, const char *path) {
  char place[PATH_MAX];
  if (!root_length || !(failing_kinds & (LOOK | LIST)) || !path || !path[0]) return 0;
  locate(place, at, path);
  return is_missed(LOOK, place);
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define CHANGES(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC))

#define MODE_OF(flags, mode) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); \
  }

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, name, const char *, int, mode_t); MODE_OF(flags, mode) \
    if (CHANGES(flags) && fate_at(CREATE, AT_FDCWD, path) < 0) return -1; \
    if (!((flags) & O_CREAT) && is_missed_at(AT_FDCWD, path)) return -1; \
    return real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int at, const char *path, int flags, ...) { \
    REAL(int, name, int, const char *, int, mode_t); MODE_OF(flags, mode) \
    if (CHANGES(flags) && fate_at(CREATE, at, path) < 0) return -1; \
    if (!((flags) & O_CREAT) && is_missed_at(at, path)) return -1; \
    return real(at, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(FILE *, name, const char *, const char *); \
    if (strpbrk(mode, "wa+") && fate_at(CREATE, AT_FDCWD, path) < 0) return NULL; \
    if (mode[0] == 'r' && is_missed_at(AT_FDCWD, path)) return NULL; \
    return real(path, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

static size_t half_of(size_t count) { return count - count / 2; }

ssize_t write(int file, const void *from, size_t count) {
  REAL(ssize_t, write, int, const void *, size_t);
  int fate = fate_of_file(WRITE, file);
  return fate < 0 ? -1 : real(file, from, fate ? half_of(count) : count);
}

#define PWRITE(name, offset_type) \
  ssize_t name(int file, const void *from, size_t count, offset_type at) { \
    REAL(ssize_t, name, int, const void *, size_t, offset_type); \
    int fate = fate_of_file(WRITE, file); \
    return fate < 0 ? -1 : real(file, from, fate ? half_of(count) : count, at); \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int file, const struct iovec *parts, int count) {
  REAL(ssize_t, writev, int, const struct iovec *, int);
  int fate = fate_of_file(WRITE, file);
  if (fate < 0) return -1;
  if (!fate || !count) return real(file, parts, count);
  struct iovec first = {parts[0].iov_base, half_of(parts[0].iov_len)};
  return real(file, &first, 1);
}

#define PWRITEV(name, offset_type) \
  ssize_t name(int file, const struct iovec *parts, int count, offset_type at) { \
    REAL(ssize_t, name, int, const struct iovec *, int, offset_type); \
    int fate = fate_of_file(WRITE, file); \
    if (fate < 0) return -1; \
    if (!fate || !count) return real(file, parts, count, at); \
    struct iovec first = {parts[0].iov_base, half_of(parts[0].iov_len)}; \
    return real(file, &first, 1, at); \
  }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

#define SENDFILE(name, offset_type) \
  ssize_t name(int into, int from, offset_type *at, size_t count) { \
    REAL(ssize_t, name, int, int, offset_type *, size_t); \
    int fate = fate_of_file(WRITE, into); \
    return fate < 0 ? -1 : real(into, from, at, fate && count < SSIZE_MAX / 2 ? half_of(count) : count); \
  }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *at, int into, off64_t *to, size_t count, unsigned flags) {
  REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
  return fate_of_file(WRITE, into) < 0 ? -1 : real(from, at, into, to, count, flags);
}

#define BY_FILE(name, kind, parameters, arguments) \
  int name parameters { \
    static int (*real) parameters; \
    if (!real) real = (int (*) parameters)dlsym(RTLD_NEXT, #name); \
    return fate_of_file(kind, file) < 0 ? -1 : real arguments; \
  }
BY_FILE(ftruncate, SIZE, (int file, off_t size), (file, size))
BY_FILE(ftruncate64, SIZE, (int file, off64_t size), (file, size))
BY_FILE(fallocate, SIZE, (int file, int mode, off_t at, off_t size), (file, mode, at, size))
BY_FILE(fallocate64, SIZE, (int file, int mode, off64_t at, off64_t size), (file, mode, at, size))
BY_FILE(fchmod, MODE, (int file, mode_t mode), (file, mode))
BY_FILE(flock, LOCK, (int file, int what), (file, what))

static int sync_kind(int file) {
  struct stat state;
  return !fstat(file, &state) && S_ISDIR(state.st_mode) ? SYNC_FOLDER : SYNC;
}
BY_FILE(fsync, sync_kind(file), (int file), (file))
BY_FILE(fdatasync, sync_kind(file), (int file), (file))

#define FCNTL(name) \
  int name(int file, int what, ...) { \
    REAL(int, name, int, int, void *); \
    va_list rest; va_start(rest, what); void *argument = va_arg(rest, void *); va_end(rest); \
    int locks = what == F_SETLK || what == F_SETLKW || what == F_OFD_SETLK || what == F_OFD_SETLKW; \
    if (locks && fate_of_file(LOCK, file) < 0) return -1; \
    return real(file, what, argument); \
  }
FCNTL(fcntl)
FCNTL(fcntl64)

#define BY_PATH(name, kind, parameters, at, path, arguments) \
  int name parameters { \
    static int (*real) parameters; \
    if (!real) real = (int (*) parameters)dlsym(RTLD_NEXT, #name); \
    return fate_at(kind, at, path) < 0 ? -1 : real arguments; \
  }
BY_PATH(mkdir, FOLDER, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
BY_PATH(mkdirat, FOLDER, (int at, const char *path, mode_t mode), at, path, (at, path, mode))
BY_PATH(rename, RENAME, (const char *from, const char *to), AT_FDCWD, to, (from, to))
BY_PATH(renameat, RENAME, (int a, const char *from, int b, const char *to), b, to, (a, from, b, to))
BY_PATH(renameat2, RENAME, (int a, const char *from, int b, const char *to, unsigned flags), b, to,
        (a, from, b, to, flags))
BY_PATH(link, LINK, (const char *from, const char *to), AT_FDCWD, to, (from, to))
BY_PATH(linkat, LINK, (int a, const char *from, int b, const char *to, int flags), b, to,
        (a, from, b, to, flags))
BY_PATH(symlink, LINK, (const char *from, const char *to), AT_FDCWD, to, (from, to))
BY_PATH(unlink, REMOVE, (const char *path), AT_FDCWD, path, (path))
BY_PATH(unlinkat, REMOVE, (int at, const char *path, int flags), at, path, (at, path, flags))
BY_PATH(rmdir, REMOVE, (const char *path), AT_FDCWD, path, (path))
BY_PATH(truncate, SIZE, (const char *path, off_t size), AT_FDCWD, path, (path, size))
BY_PATH(chmod, MODE, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
BY_PATH(fchmodat, MODE, (int at, const char *path, mode_t mode, int flags), at, path,
        (at, path, mode, flags))

#define LOOKS(name, parameters, at, path, arguments) \
  int name parameters { \
    static int (*real) parameters; \
    if (!real) real = (int (*) parameters)dlsym(RTLD_NEXT, #name); \
    return is_missed_at(at, path) ? -1 : real arguments; \
  }
LOOKS(stat, (const char *path, struct stat *state), AT_FDCWD, path, (path, state))
LOOKS(stat64, (const char *path, struct stat64 *state), AT_FDCWD, path, (path, state))
LOOKS(lstat, (const char *path, struct stat *state), AT_FDCWD, path, (path, state))
LOOKS(lstat64, (const char *path, struct stat64 *state), AT_FDCWD, path, (path, state))
LOOKS(fstatat, (int at, const char *path, struct stat *state, int flags), at, path,
      (at, path, state, flags))
LOOKS(fstatat64, (int at, const char *path, struct stat64 *state, int flags), at, path,
      (at, path, state, flags))
LOOKS(statx, (int at, const char *path, int flags, unsigned mask, struct statx *state), at, path,
      (at, path, flags, mask, state))
LOOKS(access, (const char *path, int mode), AT_FDCWD, path, (path, mode))
LOOKS(faccessat, (int at, const char *path, int mode, int flags), at, path, (at, path, mode, flags))
/* What programs call that were built with an older C library. */
LOOKS(__xstat, (int version, const char *path, struct stat *state), AT_FDCWD, path,
      (version, path, state))
LOOKS(__xstat64, (int version, const char *path, struct stat64 *state), AT_FDCWD, path,
      (version, path, state))
LOOKS(__lxstat, (int version, const char *path, struct stat *state), AT_FDCWD, path,
      (version, path, state))
LOOKS(__lxstat64, (int version, const char *path, struct stat64 *state), AT_FDCWD, path,
      (version, path, state))

DIR *opendir(const char *path) {
  REAL(DIR *, opendir, const char *);
  return is_missed_at(AT_FDCWD, path) ? NULL : real(path);
}

/* Whether an entry of a listing is left out. */
static int is_left_out(DIR *folder, const char *name) {
  char place[PATH_MAX];
  if (!root_length || !(failing_kinds & (LOOK | LIST))) return 0;
  if (!strcmp(name, ".") || !strcmp(name, "..")) return 0;
  locate(place, dirfd(folder), name);
  return is_missed(LIST, place);
}

#define READDIR(name, type) \
  struct type *name(DIR *folder) { \
    REAL(struct type *, name, DIR *); \
    int before = errno; \
    struct type *entry; \
    while ((entry = real(folder)) && is_left_out(folder, entry->d_name)) errno = before; \
    return entry; \
  }
READDIR(readdir, dirent)
READDIR(readdir64, dirent64)
