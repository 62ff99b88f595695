/* Collects what a job changed below a directory, as a tar stream (ustar with GNU long names and large sizes). */
#define _GNU_SOURCE
#include "runjob.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define STAMP HOME_OF_HELPER "/stamp"
#define NEXT STAMP ".new"
#define BLOCK 512

static char buffer[60 * 1024];
static size_t used;
static struct timespec since;
static dev_t device;
static int incomplete, any;

static void flush(void)
{
	if (used)
		send_frame('F', buffer, (uint32_t)used);
	used = 0;
}

static void put(const void *data, size_t size)
{
	const char *at = data;
	while (size) {
		size_t n = sizeof buffer - used < size ? sizeof buffer - used : size;
		memcpy(buffer + used, at, n);
		used += n, at += n, size -= n;
		if (used == sizeof buffer)
			flush();
	}
}

static void pad(off_t size)
{
	static const char zero[BLOCK];
	if (size % BLOCK)
		put(zero, BLOCK - (size_t)(size % BLOCK));
}

static void number(char *field, size_t width, unsigned long long value)
{
	if (value >> (3 * (width - 1)) == 0) {
		snprintf(field, width, "%0*llo", (int)width - 1, value);
		return;
	}
	for (size_t i = width - 1; i > 0; i--, value >>= 8)
		field[i] = (char)value;
	field[0] = (char)0x80;
}

static void header(const char *name, char type, const struct stat *s, off_t size, const char *link)
{
	char h[BLOCK] = {0};
	unsigned sum = 0;
	strncpy(h, name, 100);
	number(h + 100, 8, s->st_mode & 07777);
	number(h + 108, 8, 0);
	number(h + 116, 8, 0);
	number(h + 124, 12, (unsigned long long)size);
	number(h + 136, 12, s->st_mtime < 0 ? 0 : (unsigned long long)s->st_mtime);
	memset(h + 148, ' ', 8);
	h[156] = type;
	strncpy(h + 157, link, 100);
	memcpy(h + 257, "ustar  ", 8);
	for (int i = 0; i < BLOCK; i++)
		sum += (unsigned char)h[i];
	snprintf(h + 148, 7, "%06o", sum);
	put(h, BLOCK);
}

static void entry(const char *name, char type, const struct stat *s, off_t size, const char *link)
{
	const char *texts[2] = {link, name};
	for (int i = 0; i < 2; i++) {
		size_t length = strlen(texts[i]) + 1;
		if (length <= 100)
			continue;
		header("././@LongLink", i ? 'L' : 'K', s, (off_t)length, "");
		put(texts[i], length);
		pad((off_t)length);
	}
	header(name, type, s, size, link);
	any = 1;
}

static void miss(const char *name)
{
	incomplete = 1;
	say("cannot collect %s: %s", name, strerror(errno));
}

static void file(int directory, const char *leaf, const char *name)
{
	char data[32768];
	struct stat s;
	int fd = openat(directory, leaf, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &s)) {
		miss(name);
		if (fd >= 0)
			close(fd);
		return;
	}
	entry(name, '0', &s, s.st_size, "");
	off_t left = s.st_size;
	while (left > 0) {
		size_t want = left < (off_t)sizeof data ? (size_t)left : sizeof data;
		ssize_t n = read(fd, data, want);
		if (n <= 0) { /* it shrank or cannot be read: the announced size must still be sent */
			if (n < 0)
				miss(name);
			memset(data, 0, want);
			n = (ssize_t)want;
		}
		put(data, (size_t)n);
		left -= n;
	}
	pad(s.st_size);
	close(fd);
}

static void symlink_(int directory, const char *leaf, const char *name, const struct stat *s)
{
	char target[4096];
	ssize_t n = readlinkat(directory, leaf, target, sizeof target - 1);
	if (n < 0) {
		miss(name);
		return;
	}
	target[n] = 0;
	entry(name, '2', s, 0, target);
}

static int fresh(const struct stat *s)
{
	return s->st_ctim.tv_sec != since.tv_sec ? s->st_ctim.tv_sec > since.tv_sec : s->st_ctim.tv_nsec >= since.tv_nsec;
}

static void walk(int directory, const char *prefix)
{
	DIR *list = fdopendir(directory);
	if (!list) {
		miss(prefix);
		close(directory);
		return;
	}
	for (struct dirent *e; (e = readdir(list));) {
		struct stat s;
		char *name;
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (asprintf(&name, "%s%s", prefix, e->d_name) < 0)
			exit(1);
		if (fstatat(dirfd(list), e->d_name, &s, AT_SYMLINK_NOFOLLOW)) {
			if (errno != ENOENT)
				miss(name);
		} else if (S_ISREG(s.st_mode) && fresh(&s)) {
			file(dirfd(list), e->d_name, name);
		} else if (S_ISLNK(s.st_mode) && fresh(&s)) {
			symlink_(dirfd(list), e->d_name, name, &s);
		} else if (S_ISDIR(s.st_mode) && s.st_dev == device) {
			char *below;
			if (asprintf(&below, "%s/", name) < 0)
				exit(1);
			if (fresh(&s))
				entry(below, '5', &s, 0, "");
			int fd = openat(dirfd(list), e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			if (fd < 0)
				miss(name);
			else
				walk(fd, below);
			free(below);
		}
		free(name);
	}
	closedir(list);
}

static int touch(const char *path)
{
	unlink(path);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return fd < 0 ? -1 : close(fd);
}

void mark(int brought)
{
	struct timespec tick = {0, 20 * 1000 * 1000}; /* what was brought in must be older than the stamp */
	if (brought)
		nanosleep(&tick, NULL);
	if (touch(STAMP))
		say("cannot mark the start of the job in the guest: %s", strerror(errno));
}

void collect(const char *directory)
{
	static const char zero[2 * BLOCK];
	struct stat s;
	char result = 1;
	int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	incomplete = touch(NEXT) != 0;
	memset(&since, 0, sizeof since);
	if (stat(STAMP, &s) == 0)
		since = s.st_mtim;
	used = 0;
	any = 0;
	if (fd < 0 || fstat(fd, &s)) {
		say("cannot collect from %s in the guest: %s", directory, strerror(errno));
	} else {
		device = s.st_dev;
		walk(fd, "");
		if (any) {
			put(zero, sizeof zero);
			flush();
		}
		result = (char)(incomplete != 0);
	}
	send_frame('Z', &result, 1);
}

void collected(void)
{
	rename(NEXT, STAMP);
}
