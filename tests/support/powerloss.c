/* Remembers what of each file was made durable, so that a test can take away the rest.
 *
 * Loaded by LD_PRELOAD. After every fsync or fdatasync that succeeded, $POWERLOSS_DIR has:
 *   f.<inode>   the file's content then (up to 4 MiB), or for larger ones an empty file whose ...
 *   s.<inode>   ... size is in here
 *   d.<inode>   a directory's entries, "<inode> <name>" a line
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WHOLE (4 << 20)
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void put(const char *name, const char *temporary) {
  if (rename(temporary, name)) abort();
}

static void remember(int fd) {
  const char *folder = getenv("POWERLOSS_DIR");
  struct stat st;
  char name[4096], temporary[4096];
  if (!folder || fstat(fd, &st)) return;
  pthread_mutex_lock(&lock);
  snprintf(temporary, sizeof temporary, "%s/t.%d", folder, (int)getpid());
  FILE *out = fopen(temporary, "w");
  if (!out) abort();
  if (S_ISDIR(st.st_mode)) {
    snprintf(name, sizeof name, "%s/d.%llu", folder, (unsigned long long)st.st_ino);
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY);
    DIR *dir = again < 0 ? NULL : fdopendir(again);
    struct dirent *entry;
    while (dir && (entry = readdir(dir)))
      if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
        fprintf(out, "%llu %s\n", (unsigned long long)entry->d_ino, entry->d_name);
    if (dir) closedir(dir);
  } else if (st.st_size <= WHOLE) {
    static char data[WHOLE];
    char path[64];
    snprintf(name, sizeof name, "%s/f.%llu", folder, (unsigned long long)st.st_ino);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, O_RDONLY); /* fd itself may be open for writing only */
    ssize_t got = again < 0 ? -1 : pread(again, data, WHOLE, 0);
    if (got < 0) abort();
    fwrite(data, 1, got, out);
    /* Not close(): that would drop SQLite's POSIX locks on the file. */
  } else {
    snprintf(name, sizeof name, "%s/s.%llu", folder, (unsigned long long)st.st_ino);
    fprintf(out, "%llu", (unsigned long long)st.st_size);
  }
  if (fclose(out)) abort();
  put(name, temporary);
  pthread_mutex_unlock(&lock);
}

int fsync(int fd) {
  static int (*real)(int);
  if (!real) real = dlsym(RTLD_NEXT, "fsync");
  int result = real(fd);
  if (!result) remember(fd);
  return result;
}

int fdatasync(int fd) {
  static int (*real)(int);
  if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
  int result = real(fd);
  if (!result) remember(fd);
  return result;
}
