/* Counts the calls that change files below one folder, and makes the n-th fail or kills the process.
 *
 * Preloaded (LD_PRELOAD), so it also sees the calls of C++ and Rust. A failing or killing write first
 * writes half of its bytes, as a full disk does. On a full disk later writes fail, too; deleting works.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL, FULL_DISK, NO_MEMORY };
enum { KILLED = 137, FDS = 4096 };

static char folder[4096];
static long target, count, fired;
static int kind = NOTHING, active;
static char tracked[FDS];

void fault_arm(const char *below, long number, int what) {
    strncpy(folder, below, sizeof folder - 1);
    target = number, kind = what, count = fired = 0, active = 1;
}
void fault_disarm(void) { active = 0; }
long fault_count(void) { return count; }
long fault_fired(void) { return fired; }

static int inside(int fd, const char *path) {
    if (!active) return 0;
    if (path && path[0] == '/') return strncmp(path, folder, strlen(folder)) == 0;
    return fd >= 0 && fd < FDS && tracked[fd];
}

/* The error of this call, or 0; `grows`: it needs room on the disk. */
static int fault(int grows) {
    long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (number == target && kind == KILL) _exit(KILLED);
    int hits = kind == NO_MEMORY ? number == target
             : kind == FULL_DISK ? grows && number >= target : 0;
    if (!hits) return 0;
    fired = 1;
    return kind == FULL_DISK ? ENOSPC : ENOMEM;
}

static int is_hit(void) { return count + 1 == target && kind != NOTHING; }

#define NEXT(name) ({ static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name); real; })
#define FAIL_IF(condition, grows) do { if (condition) { int error = fault(grows); \
    if (error) { errno = error; return -1; } } } while (0)

static int opened(int fd, int yes) {
    if (fd >= 0 && fd < FDS) tracked[fd] = yes;
    return fd;
}

#define OPEN(name, at, parameters, dir, ...) \
    int name parameters { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); } \
        int yes = inside(dir, path); \
        FAIL_IF(yes && (flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)), flags & O_CREAT); \
        return opened(NEXT(name)(__VA_ARGS__, mode), yes); \
    }
OPEN(open, 0, (const char *path, int flags, ...), -1, path, flags)
OPEN(open64, 0, (const char *path, int flags, ...), -1, path, flags)
OPEN(openat, 1, (int dir, const char *path, int flags, ...), dir, dir, path, flags)
OPEN(openat64, 1, (int dir, const char *path, int flags, ...), dir, dir, path, flags)

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        int yes = inside(-1, path); \
        if (yes && strpbrk(mode, "wa+")) { int error = fault(1); if (error) { errno = error; return NULL; } } \
        FILE *file = NEXT(name)(path, mode); \
        if (file) opened(fileno(file), yes); \
        return file; \
    }
FOPEN(fopen)
FOPEN(fopen64)

int close(int fd) {
    if (fd >= 0 && fd < FDS) tracked[fd] = 0;
    return NEXT(close)(fd);
}
int fclose(FILE *file) {
    int fd = fileno(file);
    if (fd >= 0 && fd < FDS) tracked[fd] = 0;
    return NEXT(fclose)(file);
}

ssize_t write(int fd, const void *bytes, size_t size) {
    if (inside(fd, NULL)) {
        if (is_hit() && size > 1) {
            ssize_t half = NEXT(write)(fd, bytes, size / 2);
            if (kind == FULL_DISK) { fault(1); return half; }
        }
        FAIL_IF(1, 1);
    }
    return NEXT(write)(fd, bytes, size);
}
ssize_t writev(int fd, const struct iovec *parts, int number) {
    if (inside(fd, NULL)) {
        if (is_hit() && number && parts[0].iov_len > 1) {
            ssize_t half = NEXT(write)(fd, parts[0].iov_base, parts[0].iov_len / 2);
            if (kind == FULL_DISK) { fault(1); return half; }
        }
        FAIL_IF(1, 1);
    }
    return NEXT(writev)(fd, parts, number);
}

#define CALL(type, name, parameters, yes, grows, ...) \
    type name parameters { FAIL_IF(yes, grows); return NEXT(name)(__VA_ARGS__); }
CALL(ssize_t, pwrite, (int f, const void *b, size_t n, off_t o), inside(f, NULL), 1, f, b, n, o)
CALL(ssize_t, pwrite64, (int f, const void *b, size_t n, off64_t o), inside(f, NULL), 1, f, b, n, o)
CALL(ssize_t, sendfile, (int f, int g, off_t *o, size_t n), inside(f, NULL), 1, f, g, o, n)
CALL(ssize_t, sendfile64, (int f, int g, off64_t *o, size_t n), inside(f, NULL), 1, f, g, o, n)
CALL(ssize_t, copy_file_range, (int g, off64_t *p, int f, off64_t *o, size_t n, unsigned k),
     inside(f, NULL), 1, g, p, f, o, n, k)
CALL(int, ftruncate, (int f, off_t n), inside(f, NULL), 0, f, n)
CALL(int, ftruncate64, (int f, off64_t n), inside(f, NULL), 0, f, n)
CALL(int, fsync, (int f), inside(f, NULL), 1, f)
CALL(int, fdatasync, (int f), inside(f, NULL), 1, f)
CALL(int, rename, (const char *a, const char *b), inside(-1, b), 1, a, b)
CALL(int, renameat, (int d, const char *a, int e, const char *b), inside(e, b), 1, d, a, e, b)
CALL(int, renameat2, (int d, const char *a, int e, const char *b, unsigned k), inside(e, b), 1, d, a, e, b, k)
CALL(int, link, (const char *a, const char *b), inside(-1, b), 1, a, b)
CALL(int, symlink, (const char *a, const char *b), inside(-1, b), 1, a, b)
CALL(int, unlink, (const char *a), inside(-1, a), 0, a)
CALL(int, unlinkat, (int d, const char *a, int k), inside(d, a), 0, d, a, k)
CALL(int, rmdir, (const char *a), inside(-1, a), 0, a)
CALL(int, mkdir, (const char *a, mode_t m), inside(-1, a), 1, a, m)
CALL(int, mkdirat, (int d, const char *a, mode_t m), inside(d, a), 1, d, a, m)
