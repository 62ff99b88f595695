/* Runs commands of a job in the guest, for vmbatch-remoteshell on the host.
 *
 * Standard input and output carry frames: type (1 byte), length (4 bytes, big endian), data.
 *   host to guest   E environment, A arguments (both NUL-ended strings), D working directory, U umask (octal text),
 *                   S index of an argument, script name, NUL, script text (the argument becomes its path),
 *                   T rows, columns (two bytes each: run on a terminal), G go,
 *                   I standard input, C its end, W rows, columns, K signal number,
 *                   M mark (with a byte: files came in; answered by m), Q directory (collect), Y collected
 *   guest to host   O standard output, R standard error, a count (4 bytes) of standard input taken,
 *                   X 0 status | 1 signal, m marked, F tar stream, Z 0 whole | 1 something is missing, ! sentence
 * After X another command may follow on the same connection. The end of standard input means that the host's side is
 * gone: everything that the job started is ended. We are its subreaper, so that also finds what detached itself.
 *
 * Static, no allocation after the header, Linux 2.6 or later. */
#define _GNU_SOURCE
#include "runjob.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef PR_SET_CHILD_SUBREAPER
#define PR_SET_CHILD_SUBREAPER 36
#endif
#define WINDOW (256 * 1024)          /* standard input under way; the host counts the same */
#define LARGEST (64u * 1024 * 1024)  /* of a header frame */
#define CHUNK (60 * 1024)
#define MAX_PIDS 65536

extern char **environ;

static struct command {
	char **argv, **envp;
	char *cwd, *script;
	int tty, rows, columns, mask;
} job;

static pid_t leader;                            /* 0: no command is running */
static int in_fd = -1, out_fd = -1, err_fd = -1; /* our ends; on a terminal in and out are the same one */
static char input[WINDOW];
static size_t input_used;
static int input_ended;
static char output[CHUNK + 5];
static size_t output_at, output_used;
static int wake[2];

/* --- frames --- */

static void write_all(int fd, const void *data, size_t size)
{
	const char *at = data;
	while (size) {
		ssize_t n = write(fd, at, size);
		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			struct pollfd p = {fd, POLLOUT, 0};
			poll(&p, 1, -1);
			continue;
		}
		if (n <= 0)
			exit(1);
		at += n;
		size -= (size_t)n;
	}
}

static void flush_output(void)
{
	write_all(1, output + output_at, output_used - output_at);
	output_at = output_used = 0;
}

static void put_head(char *head, char type, uint32_t size)
{
	head[0] = type;
	head[1] = (char)(size >> 24), head[2] = (char)(size >> 16), head[3] = (char)(size >> 8), head[4] = (char)size;
}

void send_frame(char type, const void *data, uint32_t size)
{
	char head[5];
	flush_output();
	put_head(head, type, size);
	write_all(1, head, 5);
	write_all(1, data, size);
}

void say(const char *format, ...)
{
	char text[1024];
	va_list list;
	va_start(list, format);
	int n = vsnprintf(text, sizeof text, format, list);
	va_end(list);
	send_frame('!', text, (uint32_t)(n < (int)sizeof text ? n : (int)sizeof text - 1));
}

static void send_status(int kind, int code)
{
	char data[2] = {(char)kind, (char)code};
	send_frame('X', data, 2);
}

/* --- the job's processes: everything below us --- */

static int parent_of(int pid)
{
	char path[64], text[512];
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n <= 0)
		return -1;
	text[n] = 0;
	char *end = strrchr(text, ')');
	int parent = -1;
	char state = 0;
	if (!end || sscanf(end + 1, " %c %d", &state, &parent) != 2 || state == 'Z')
		return -1;
	return parent;
}

static int signal_tree(int number)
{
	static int pids[MAX_PIDS], parents[MAX_PIDS];
	static char ours[MAX_PIDS];
	int count = 0, hit = 0, changed = 1;
	DIR *proc = opendir("/proc");
	if (!proc)
		return leader ? kill(-leader, number) == 0 : 0;
	for (struct dirent *e; (e = readdir(proc)) && count < MAX_PIDS;)
		if (isdigit((unsigned char)e->d_name[0])) {
			pids[count] = atoi(e->d_name);
			parents[count] = parent_of(pids[count]);
			ours[count++] = 0;
		}
	closedir(proc);
	while (changed) {
		changed = 0;
		for (int i = 0; i < count; i++) {
			int mine = parents[i] == getpid();
			for (int k = 0; !mine && !ours[i] && k < count; k++)
				mine = ours[k] && pids[k] == parents[i];
			if (mine && !ours[i])
				ours[i] = 1, changed = 1;
		}
	}
	for (int i = 0; i < count; i++)
		if (ours[i] && pids[i] != getpid() && kill(pids[i], number) == 0)
			hit++;
	return hit;
}

static void pause_ms(long ms)
{
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};
	nanosleep(&t, NULL);
}

/* Ends whatever the job left; a process that forks while we look is found in the next round. */
static void end_tree(void)
{
	for (int round = 0; round < 500; round++) {
		int left = signal_tree(SIGKILL);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (!left)
			return;
		pause_ms(round < 20 ? 2 : 20);
	}
}

static void lost(void)
{
	if (leader) {
		signal_tree(SIGHUP);
		signal_tree(SIGCONT);
		pause_ms(1000);
	}
	end_tree();
	exit(1);
}

/* --- starting a command --- */

static char **split(char *data, uint32_t size)
{
	size_t count = 0;
	for (uint32_t i = 0; i < size; i++)
		count += data[i] == 0;
	char **list = calloc(count + 1, sizeof *list);
	if (!list)
		exit(1);
	char *at = data;
	for (size_t i = 0; i < count; i++) {
		list[i] = at;
		at += strlen(at) + 1;
	}
	return list;
}

/* The folder that the site wants scripts in (<vbjobpath>), "" where it does not say. */
static const char *job_path(void)
{
	static char path[256];
	int fd = open(HOME_OF_HELPER "/../jobpath", O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? 0 : read(fd, path, sizeof path - 1);
	if (fd >= 0)
		close(fd);
	path[length > 0 ? length : 0] = 0;
	path[strcspn(path, "\n")] = 0;
	return path;
}

static void keep_script(char *data, uint32_t size)
{
	static char path[512];
	char directory[] = HOME_OF_HELPER "/XXXXXX";
	int fd = -1;
	unsigned index = (unsigned char)data[0];
	const char *name = data + 1, *slash = strrchr(name, '/');
	char *text = data + 1 + strlen(name) + 1;
	if (slash)
		name = slash + 1;
	if (!*name)
		name = "script";
	if (*job_path()) {
		snprintf(path, sizeof path, "%s/%.200s", job_path(), name);
		fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700); /* another shell may have one of that name */
	}
	if (fd < 0) {
		if (!mkdtemp(directory)) {
			say("cannot keep the job's script in the guest: %s: %s", directory, strerror(errno));
			return;
		}
		snprintf(path, sizeof path, "%s/%.200s", directory, name);
		fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
	}
	size_t length = size - (size_t)(text - data);
	if (fd < 0 || write(fd, text, length) != (ssize_t)length || close(fd))
		say("cannot keep the job's script in the guest: %s: %s", path, strerror(errno));
	for (unsigned i = 0; job.argv && job.argv[i]; i++)
		if (i == index)
			job.argv[i] = path;
	job.script = path;
}

static void drop_script(void)
{
	if (!job.script)
		return;
	unlink(job.script);
	*strrchr(job.script, '/') = 0;
	if (strcmp(job.script, job_path()))
		rmdir(job.script);
	job.script = NULL;
}

static void exec_job(int report)
{
	environ = job.envp ? job.envp : environ;
	umask((mode_t)job.mask);
	execvp(job.argv[0], job.argv);
	int problem = errno;
	if (problem == ENOENT && !strchr(job.argv[0], '/')) {
		char *kept = getenv("PATH");
		char saved[8192];
		snprintf(saved, sizeof saved, "PATH=%s", kept ? kept : "");
		setenv("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin", 1);
		execvp(job.argv[0], job.argv);
		problem = errno;
	}
	if (problem == ENOEXEC) {
		size_t count = 0;
		while (job.argv[count])
			count++;
		char **again = calloc(count + 2, sizeof *again);
		if (again) {
			again[0] = "/bin/sh";
			memcpy(again + 1, job.argv, count * sizeof *again);
			execv(again[0], again);
			problem = errno;
		}
	}
	write_all(report, &problem, sizeof problem);
	_exit(127);
}

static void enter_directory(void)
{
	if (!job.cwd || chdir(job.cwd) == 0)
		return;
	const char *home = getenv("HOME");
	int problem = errno;
	if (!home || chdir(home))
		home = chdir("/tmp") ? "/" : "/tmp";
	say("cannot enter %s in the guest (%s); the job starts in %s", job.cwd, strerror(problem), home);
}

static int open_terminal(int *slave)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (master < 0 || grantpt(master) || unlockpt(master))
		return -1;
	*slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct winsize size = {(unsigned short)job.rows, (unsigned short)job.columns, 0, 0};
	ioctl(master, TIOCSWINSZ, &size);
	return *slave < 0 ? -1 : master;
}

static void child_of(int in, int out, int err, int report)
{
	setsid();
	if (job.tty)
		ioctl(in, TIOCSCTTY, 0);
	dup2(in, 0);
	dup2(out, 1);
	dup2(err, 2);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (int s = 1; s < 32; s++)
		signal(s, SIG_DFL);
	exec_job(report);
}

static void nonblocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static int open_streams(int child[3])
{
	int a[2], b[2], c[2];
	if (job.tty) {
		int slave;
		in_fd = open_terminal(&slave);
		if (in_fd < 0)
			return -1;
		out_fd = dup(in_fd);
		child[0] = child[1] = child[2] = slave;
	} else {
		if (pipe2(a, O_CLOEXEC) || pipe2(b, O_CLOEXEC) || pipe2(c, O_CLOEXEC))
			return -1;
		in_fd = a[1], out_fd = b[0], err_fd = c[0];
		child[0] = a[0], child[1] = b[1], child[2] = c[1];
		nonblocking(err_fd);
	}
	nonblocking(in_fd);
	nonblocking(out_fd);
	return 0;
}

static void fail_to_start(int problem)
{
	int missing = problem == ENOENT || problem == ENOTDIR;
	const char *hint = missing && job.script ? " (its first line names an interpreter that the guest has not)" : "";
	say("cannot run %s in the guest: %s%s", job.argv[0], strerror(problem), hint);
	waitpid(leader, NULL, 0);
	leader = 0;
	drop_script();
	job = (struct command){.mask = 022};
	send_status(0, missing ? 127 : 126);
}

static void go(void)
{
	int child[3], report[2], problem;
	if (!job.argv || !job.argv[0] || pipe2(report, O_CLOEXEC) || open_streams(child)) {
		say("cannot start the job in the guest: %s", strerror(errno));
		send_status(0, 126);
		return;
	}
	input_used = 0;
	input_ended = 0;
	enter_directory();
	leader = fork();
	if (leader == 0)
		child_of(child[0], child[1], child[2], report[1]);
	close(report[1]);
	close(child[0]);
	if (!job.tty)
		close(child[1]), close(child[2]);
	ssize_t n = leader > 0 ? read(report[0], &problem, sizeof problem) : (problem = errno, (ssize_t)sizeof problem);
	close(report[0]);
	if (n == sizeof problem) {
		close(in_fd), close(out_fd);
		if (err_fd >= 0)
			close(err_fd);
		in_fd = out_fd = err_fd = -1;
		fail_to_start(problem);
	}
}

/* --- a command under way --- */

static void take_output(int *fd, char type)
{
	ssize_t n = read(*fd, output + 5, CHUNK);
	if (n > 0) {
		put_head(output, type, (uint32_t)n);
		output_at = 0;
		output_used = (size_t)n + 5;
	} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		close(*fd);
		*fd = -1;
	}
}

static void acknowledge(size_t count)
{
	char data[4] = {(char)(count >> 24), (char)(count >> 16), (char)(count >> 8), (char)count};
	if (count)
		send_frame('a', data, 4);
}

static void feed(void)
{
	ssize_t n = write(in_fd, input, input_used);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0) { /* the job closed its standard input: swallow the rest */
		n = (ssize_t)input_used;
		if (!job.tty)
			close(in_fd), in_fd = -1;
	}
	memmove(input, input + n, input_used - (size_t)n);
	input_used -= (size_t)n;
	acknowledge((size_t)n);
}

static void finish(int status)
{
	end_tree();
	for (int *fd = &out_fd; fd; fd = fd == &out_fd ? &err_fd : NULL)
		while (*fd >= 0) {
			flush_output();
			take_output(fd, fd == &out_fd ? 'O' : 'R');
			if (*fd >= 0 && !output_used)
				close(*fd), *fd = -1;
		}
	if (in_fd >= 0)
		close(in_fd), in_fd = -1;
	leader = 0;
	drop_script();
	acknowledge(input_used);
	input_used = 0;
	job = (struct command){.mask = 022};
	send_status(WIFSIGNALED(status), WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

static void reap_children(void)
{
	char scrap[64];
	int status, ended = 0, last = 0;
	while (read(wake[0], scrap, sizeof scrap) > 0)
		;
	for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
		if (pid == leader)
			ended = 1, last = status;
	if (ended)
		finish(last);
}

static void resize(const char *data)
{
	struct winsize size = {0};
	size.ws_row = (unsigned short)((unsigned char)data[0] << 8 | (unsigned char)data[1]);
	size.ws_col = (unsigned short)((unsigned char)data[2] << 8 | (unsigned char)data[3]);
	if (in_fd >= 0 && job.tty)
		ioctl(in_fd, TIOCSWINSZ, &size);
	job.rows = size.ws_row, job.columns = size.ws_col;
}

static void deliver(int number)
{
	if (!leader)
		return;
	signal_tree(number == SIGTSTP ? SIGSTOP : number);
	if (number == SIGTSTP)
		signal_tree(SIGSTOP);
}

static void take_frame(char type, char *data, uint32_t size)
{
	switch (type) {
	case 'E': job.envp = split(data, size); break;
	case 'A': job.argv = split(data, size); break;
	case 'D': job.cwd = data; break;
	case 'U': job.mask = (int)strtol(data, NULL, 8); break;
	case 'S': if (size > 2 && memchr(data + 1, 0, size - 1)) keep_script(data, size); break;
	case 'T': if (size == 4) job.tty = 1, resize(data); break;
	case 'G': go(); break;
	case 'I':
		if (leader && in_fd >= 0 && size <= WINDOW - input_used) {
			memcpy(input + input_used, data, size);
			input_used += size;
		} else {
			acknowledge(size);
		}
		break;
	case 'C': input_ended = 1; break;
	case 'W': if (size == 4) resize(data); break;
	case 'K': if (size == 1) deliver((unsigned char)data[0]); break;
	case 'M': mark(size != 0); send_frame('m', "", 0); break;
	case 'Q': collect(data); break;
	case 'Y': collected(); break;
	}
}

/* Reads what is there and handles each whole frame. Header frames stay allocated: the job's words point into them. */
static void take_input(void)
{
	static char head[5];
	static char *data;
	static uint32_t size, have;
	for (;;) {
		ssize_t n = have < 5 ? read(0, head + have, 5 - have) : read(0, data + (have - 5), size - (have - 5));
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			lost();
		if (n < 0)
			return;
		have += (uint32_t)n;
		if (have == 5) {
			size = (uint32_t)(unsigned char)head[1] << 24 | (uint32_t)(unsigned char)head[2] << 16 |
			       (uint32_t)(unsigned char)head[3] << 8 | (unsigned char)head[4];
			data = size > LARGEST ? NULL : calloc(1, size + 1);
			if (!data)
				lost();
		}
		if (have < 5 || have - 5 < size)
			continue;
		have = 0;
		take_frame(head[0], data, size);
		if (!strchr("EADUS", head[0]))
			free(data);
		if (head[0] == 'G' || head[0] == 'Q')
			return;
	}
}

static void on_child(int number)
{
	(void)number;
	int kept = errno;
	if (write(wake[1], "", 1) < 0) { /* the pipe is full: a wake-up is there already */
	}
	errno = kept;
}

int main(void)
{
	struct sigaction action = {.sa_handler = on_child, .sa_flags = SA_RESTART};
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	if (pipe2(wake, O_CLOEXEC | O_NONBLOCK))
		return 1;
	sigaction(SIGCHLD, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	job.mask = 022;
	nonblocking(0);
	nonblocking(1);
	for (;;) {
		if (leader && input_ended && !input_used && in_fd >= 0) {
			if (job.tty)
				input_ended = write(in_fd, "\004", 1) != 1;
			else
				close(in_fd), in_fd = -1;
		}
		int quiet = output_used == 0;
		struct pollfd set[6] = {
			{0, POLLIN, 0},
			{wake[0], POLLIN, 0},
			{quiet ? -1 : 1, POLLOUT, 0},
			{quiet ? out_fd : -1, POLLIN, 0},
			{quiet ? err_fd : -1, POLLIN, 0},
			{input_used ? in_fd : -1, POLLOUT, 0},
		};
		if (poll(set, 6, -1) < 0)
			continue;
		if (set[2].revents)
			flush_output();
		if (set[0].revents)
			take_input();
		if (set[5].revents && in_fd >= 0)
			feed();
		if (set[3].revents && out_fd >= 0 && !output_used)
			take_output(&out_fd, 'O');
		if (set[4].revents && err_fd >= 0 && !output_used)
			take_output(&err_fd, 'R');
		if (set[1].revents)
			reap_children();
	}
}
