/* Faults at the k-th file operation of a process: loaded with LD_PRELOAD, armed after a fork (see _faults_process.py).

   Counted are opening, reading, writing, flushing, renaming and removing below one folder, whichever library does it:
   Python, Arrow's C++ or safetensors' Rust. What a process changes through a memory map is not seen.
   Beside that the library keeps book of what a loss of power would take: bytes that were not flushed, and renames and
   removals whose folder was not flushed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NOTHING, SIGNAL, POWER, FULL, READ_ERROR, WRITE_ERROR, CLOCK };
enum { CHANGES = 1, READS = 2 };
enum { FDS = 4096, BOOK = 16384 };

typedef struct { int used, dirty; long kept; dev_t device; ino_t node; } Handle;
typedef struct { int fd; long kept; dev_t device; ino_t node; } Lost;
typedef struct { char from[PATH_MAX], to[PATH_MAX], saved[PATH_MAX]; int live; } Moved;

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static char root[PATH_MAX], aside[PATH_MAX];
static long at, seen, parameter, shift, total[3];
static int action, counted, armed, full, inside;
static unsigned draw;
static Handle handles[FDS];
static Lost *lost;
static Moved *moved;
static int lost_count, moved_count, saved_count;

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

void faults_arm(const char *folder, const char *scratch, long moment, int what, int kinds, long value, unsigned seed) {
    pthread_mutex_lock(&lock);
    snprintf(root, sizeof root, "%s/", folder);
    snprintf(aside, sizeof aside, "%s", scratch);
    at = moment, action = what, counted = kinds, parameter = value, draw = seed;
    seen = 0, full = 0, total[CHANGES] = 0, total[READS] = 0;
    if (!lost) lost = calloc(BOOK, sizeof *lost);
    if (!moved) moved = calloc(256, sizeof *moved);
    armed = 1;
    pthread_mutex_unlock(&lock);
}

long faults_seen(int kind) { return total[kind]; }
void faults_shift(long seconds) { shift = seconds; }

static int ours(int dirfd, const char *path, char *out) {
    char whole[2 * PATH_MAX];
    if (!armed || inside || !path) return 0;
    if (path[0] == '/') snprintf(whole, sizeof whole, "%s", path);
    else {
        char base[PATH_MAX], link[64];
        ssize_t length = -1;
        if (dirfd == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
        else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
            if ((length = readlink(link, base, sizeof base - 1)) < 0) return 0;
            base[length] = 0;
        }
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    }
    if (strncmp(whole, root, strlen(root))) return 0;
    snprintf(out, PATH_MAX, "%s", whole);
    return 1;
}

static int known(int fd) { return armed && !inside && fd >= 0 && fd < FDS && handles[fd].used; }

static void lose_power(void) {
    inside = 1;
    for (int fd = 0; fd < FDS; fd++)
        if (handles[fd].used && handles[fd].dirty && ftruncate(fd, handles[fd].kept)) {}
    for (int i = lost_count - 1; i >= 0; i--)
        if (lost[i].fd >= 0 && ftruncate(lost[i].fd, lost[i].kept)) {}
    int live = 0;
    for (int i = 0; i < moved_count; i++) live += moved[i].live;
    int undo = live ? rand_r(&draw) % (live + 1) : 0;  /* the last ones are lost: a journal keeps the order */
    for (int i = moved_count - 1; i >= 0 && undo; i--) {
        if (!moved[i].live) continue;
        if (moved[i].from[0] && rename(moved[i].to, moved[i].from)) {}
        if (moved[i].saved[0] && rename(moved[i].saved, moved[i].to)) {}
        undo--;
    }
    kill(getpid(), SIGKILL);
}

/* Counts an operation; non-zero errno where it has to fail. Call with the lock held. */
static int strike(int kind, int writes) {
    if (full && writes) return ENOSPC;
    total[kind]++;
    if (!(counted & kind)) return 0;
    seen++;
    if (seen != at) return 0;
    switch (action) {
        case SIGNAL: kill(getpid(), (int)parameter); break;
        case POWER: lose_power(); break;
        case FULL: full = 1; return writes ? ENOSPC : 0;
        case READ_ERROR: return kind == READS ? EIO : 0;
        case WRITE_ERROR: return kind == CHANGES ? EIO : 0;
        case CLOCK: shift = parameter; break;
    }
    return 0;
}

#define FAIL(kind, writes, result) do { \
    pthread_mutex_lock(&lock); int failed = strike(kind, writes); pthread_mutex_unlock(&lock); \
    if (failed) { errno = failed; return result; } } while (0)

static void keep(int fd, int flags, int fresh) {
    struct stat found;
    if (fd < 0 || fd >= FDS || fstat(fd, &found)) return;
    handles[fd] = (Handle){1, 0, (flags & O_TRUNC) || fresh ? 0 : (long)found.st_size, found.st_dev, found.st_ino};
    if (flags & O_TRUNC) handles[fd].dirty = 1;
}

static int opened(int (*real)(int, const char *, int, mode_t), int dirfd, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    if (!ours(dirfd, path, whole)) return real(dirfd, path, flags, mode);
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    struct stat before;
    int fresh = stat(whole, &before) != 0;
    FAIL(writes ? CHANGES : READS, writes && (flags & O_CREAT) && fresh, -1);
    int fd = real(dirfd, path, flags, mode);
    pthread_mutex_lock(&lock);
    keep(fd, flags, fresh);
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPEN_AT(name) int name(int dirfd, const char *path, int flags, ...) { \
    REAL(int, #name, int, const char *, int, mode_t); \
    va_list more; va_start(more, flags); mode_t mode = (mode_t)va_arg(more, int); va_end(more); \
    return opened(real, dirfd, path, flags, mode); }
OPEN_AT(openat)
OPEN_AT(openat64)
int open(const char *path, int flags, ...) {
    va_list more; va_start(more, flags); mode_t mode = (mode_t)va_arg(more, int); va_end(more);
    return openat(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    va_list more; va_start(more, flags); mode_t mode = (mode_t)va_arg(more, int); va_end(more);
    return openat64(AT_FDCWD, path, flags, mode);
}

int close(int fd) {
    REAL(int, "close", int);
    if (armed && !inside && fd >= 0 && fd < FDS && handles[fd].used) {
        pthread_mutex_lock(&lock);
        if (handles[fd].dirty && lost_count < BOOK) {
            int copy = fcntl(fd, F_DUPFD_CLOEXEC, FDS / 2);
            lost[lost_count++] = (Lost){copy, handles[fd].kept, handles[fd].device, handles[fd].node};
        }
        handles[fd].used = 0;
        pthread_mutex_unlock(&lock);
    }
    return real(fd);
}

static void flushed(int fd) {
    struct stat found;
    if (fstat(fd, &found)) return;
    pthread_mutex_lock(&lock);
    if (S_ISDIR(found.st_mode)) {
        char link[64], folder[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, folder, sizeof folder - 1);
        folder[length < 0 ? 0 : length] = 0;
        for (int i = 0; i < moved_count; i++) {
            char *slash = strrchr(moved[i].to, '/');
            if (slash && (size_t)(slash - moved[i].to) == strlen(folder)
                && !strncmp(moved[i].to, folder, strlen(folder))) moved[i].live = 0;
        }
    }
    for (int other = 0; other < FDS; other++)
        if (handles[other].used && handles[other].node == found.st_ino && handles[other].device == found.st_dev)
            handles[other].dirty = 0, handles[other].kept = found.st_size;
    for (int i = 0; i < lost_count; i++)
        if (lost[i].fd >= 0 && lost[i].node == found.st_ino && lost[i].device == found.st_dev) {
            int copy = lost[i].fd;
            lost[i].fd = -1;
            close(copy);
        }
    pthread_mutex_unlock(&lock);
}

#define FLUSH(name) int name(int fd) { \
    REAL(int, #name, int); \
    if (!known(fd)) return real(fd); \
    FAIL(CHANGES, 0, -1); \
    int done = real(fd); \
    if (!done) flushed(fd); \
    return done; }
FLUSH(fsync)
FLUSH(fdatasync)

static void dirty(int fd) {
    pthread_mutex_lock(&lock);
    handles[fd].dirty = 1;
    pthread_mutex_unlock(&lock);
}

#define WRITES(name, count, shape, given) ssize_t name shape { \
    static ssize_t (*real) shape; \
    if (!real) real = (ssize_t (*) shape)dlsym(RTLD_NEXT, #name); \
    if (!known(fd)) return real given; \
    FAIL(CHANGES, 1, -1); \
    dirty(fd); \
    return real given; }
WRITES(write, size, (int fd, const void *from, size_t size), (fd, from, size))
WRITES(pwrite, size, (int fd, const void *from, size_t size, off_t place), (fd, from, size, place))
WRITES(pwrite64, size, (int fd, const void *from, size_t size, off64_t place), (fd, from, size, place))
WRITES(writev, 0, (int fd, const struct iovec *parts, int count), (fd, parts, count))

#define READS_IN(name, shape, given) ssize_t name shape { \
    static ssize_t (*real) shape; \
    if (!real) real = (ssize_t (*) shape)dlsym(RTLD_NEXT, #name); \
    if (!known(fd)) return real given; \
    FAIL(READS, 0, -1); \
    return real given; }
READS_IN(read, (int fd, void *into, size_t size), (fd, into, size))
READS_IN(pread, (int fd, void *into, size_t size, off_t place), (fd, into, size, place))
READS_IN(pread64, (int fd, void *into, size_t size, off64_t place), (fd, into, size, place))

/* A copy of what a rename or removal takes away, so that a loss of power may bring it back. */
static void book(const char *from, const char *to) {
    pthread_mutex_lock(&lock);
    if (moved_count == 256) moved_count = 0;
    Moved *entry = &moved[moved_count];
    entry->live = 1;
    snprintf(entry->from, sizeof entry->from, "%s", from);
    snprintf(entry->to, sizeof entry->to, "%s", to);
    snprintf(entry->saved, sizeof entry->saved, "%s/%d-%d", aside, (int)getpid(), saved_count++);
    if (action != POWER || link(to, entry->saved)) entry->saved[0] = 0;
    moved_count++;
    pthread_mutex_unlock(&lock);
}

static void unbook(void) {
    pthread_mutex_lock(&lock);
    if (moved_count) moved_count--;
    pthread_mutex_unlock(&lock);
}

int renameat(int olddir, const char *old, int newdir, const char *new) {
    REAL(int, "renameat", int, const char *, int, const char *);
    char from[PATH_MAX], to[PATH_MAX];
    if (!ours(newdir, new, to) || !ours(olddir, old, from)) return real(olddir, old, newdir, new);
    FAIL(CHANGES, 0, -1);
    book(from, to);
    int done = real(olddir, old, newdir, new);
    if (done) unbook();
    return done;
}
int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }

int unlinkat(int dirfd, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    char whole[PATH_MAX];
    struct stat found;
    if (!ours(dirfd, path, whole) || lstat(whole, &found)) return real(dirfd, path, flags);
    FAIL(CHANGES, 0, -1);
    if (!(flags & AT_REMOVEDIR)) book("", whole);
    int done = real(dirfd, path, flags);
    if (done && !(flags & AT_REMOVEDIR)) unbook();
    return done;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    char whole[PATH_MAX];
    struct stat found;
    if (!ours(AT_FDCWD, path, whole) || !lstat(whole, &found)) return real(path, mode);
    FAIL(CHANGES, 1, -1);
    return real(path, mode);
}

int ftruncate64(int fd, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    if (!known(fd)) return real(fd, size);
    FAIL(CHANGES, 1, -1);
    dirty(fd);
    return real(fd, size);
}

/* The clock: what time.time() and datetime ask. */
int clock_gettime(clockid_t which, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int done = real(which, now);
    if (!done && which == CLOCK_REALTIME) now->tv_sec += shift;
    return done;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(int, "gettimeofday", struct timeval *, void *);
    int done = real(now, zone);
    if (!done && now) now->tv_sec += shift;
    return done;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
