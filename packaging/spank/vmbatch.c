/* Slurm plugin: `--vm=IMAGE[:key=value]...` for sbatch, srun and salloc, and in #SBATCH lines.
 *
 * On the submit side it passes the request to slurmd's Prolog and Epilog (SPANK_VMBATCH_VM) and to the job
 * (SLURM_VMBATCH_VM, which --export=NONE keeps). On the node, before a task of such a job starts, it puts
 * vmbatch-remoteshell in front of the task's command. It refuses in task_init only: a refusal in user_init would let
 * sbatch jobs end as COMPLETED and drain the node.
 *
 * plugstack.conf:  required /path/vmbatch.so shell=/usr/bin/vmbatch-remoteshell run=/run/vmbatch cluster=NAME
 * See spank(8). Compile it again for each Slurm release. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <slurm/spank.h>

#define LONGEST 1000
#define NO_GUEST 125
#define FAIL (-1) /* Slurm 22.05 goes on where a plugin returns one of the positive ESPANK codes */
#define EXTERN_STEP 0xfffffffc /* SLURM_EXTERN_CONT: slurmd's own step, no user command in it */

SPANK_PLUGIN(vmbatch, 1)

#ifndef MARK
#define MARK ""
#endif
const char vmbatch_plugin_mark[] = MARK; /* what it was compiled from: `vmbatch install` looks for it */

static char request[LONGEST + 1];
static int asked;

static int take(int value, const char *text, int remote)
{
	(void)value;
	(void)remote;
	asked = 1;
	if (!text || !*text || strlen(text) > LONGEST) {
		slurm_error("vmbatch: --vm takes IMAGE[:key=value]..., at most %d bytes", LONGEST);
		return FAIL;
	}
	strcpy(request, text);
	return ESPANK_SUCCESS;
}

static struct spank_option vm_option = {
	.name = "vm",
	.arginfo = "IMAGE[:key=value]...",
	.usage = "run the job in a virtual machine of this image (default: $VMBATCH_VM; none: no machine)",
	.has_arg = 1,
	.val = 0,
	.cb = take,
};

int slurm_spank_init(spank_t sp, int ac, char **av)
{
	(void)ac;
	(void)av;
	return spank_option_register(sp, &vm_option);
}

/* After the options are read, on the submit side: the request goes to the hooks and to the job. */
int slurm_spank_init_post_opt(spank_t sp, int ac, char **av)
{
	(void)ac;
	(void)av;
	spank_context_t context = spank_context();
	const char *standing = getenv("VMBATCH_VM");
	if (context != S_CTX_LOCAL && context != S_CTX_ALLOCATOR)
		return ESPANK_SUCCESS;
	if (!asked && standing && *standing && take(0, standing, 0) != ESPANK_SUCCESS)
		return FAIL;
	if (!asked || !strcmp(request, "none")) {
		unsetenv("SLURM_VMBATCH_VM");
		return ESPANK_SUCCESS;
	}
	setenv("SLURM_VMBATCH_VM", request, 1);
	if (spank_job_control_setenv(sp, "VMBATCH_VM", request, 1) != ESPANK_SUCCESS) {
		slurm_error("vmbatch: cannot pass --vm to the job's nodes");
		return FAIL;
	}
	return ESPANK_SUCCESS;
}

static const char *setting(int ac, char **av, const char *name, const char *standard)
{
	size_t length = strlen(name);
	for (int i = 0; i < ac; i++)
		if (!strncmp(av[i], name, length) && av[i][length] == '=')
			return av[i] + length + 1;
	return standard;
}

/* Whether Prolog left something for this job: a guest, or the reason why there is none. */
static int has_guest(spank_t sp, int ac, char **av)
{
	const char *run = setting(ac, av, "run", "/run/vmbatch");
	char cluster[256] = "", node[256] = "", path[1024];
	uint32_t job = 0;
	struct stat s;
	/* srun --jobid from outside the job leaves the name out, and a user may change it: the site's setting wins */
	if (*setting(ac, av, "cluster", ""))
		spank_setenv(sp, "SLURM_CLUSTER_NAME", setting(ac, av, "cluster", ""), 1);
	spank_getenv(sp, "SLURM_CLUSTER_NAME", cluster, sizeof cluster);
	spank_getenv(sp, "SLURMD_NODENAME", node, sizeof node);
	if (spank_get_item(sp, S_JOB_ID, &job) != ESPANK_SUCCESS)
		return 0;
	snprintf(path, sizeof path, "%s/by-job/slurm-%s-%s-%u", run, cluster, node, job);
	return lstat(path, &s) == 0;
}

static int wanted(spank_t sp)
{
	char text[LONGEST + 8] = "";
	if (asked)
		return strcmp(request, "none") != 0;
	return spank_getenv(sp, "SLURM_VMBATCH_VM", text, sizeof text) == ESPANK_SUCCESS && *text;
}

/* End the task, here in its own process: whatever Slurm makes of a plugin's return value, it does not run. */
static void refuse(const char *what, const char *why)
{
	slurm_error("vmbatch: %s: %s; the task is refused, it must not run on the host", what, why);
	_exit(NO_GUEST);
}

int slurm_spank_task_init(spank_t sp, int ac, char **av)
{
	const char *shell = setting(ac, av, "shell", "/usr/bin/vmbatch-remoteshell");
	char **words = NULL, **env = NULL;
	uint32_t step = 0;
	int count = 0;
	if (spank_get_item(sp, S_JOB_STEPID, &step) == ESPANK_SUCCESS && step == EXTERN_STEP)
		return ESPANK_SUCCESS;
	if (!has_guest(sp, ac, av) && !wanted(sp))
		return ESPANK_SUCCESS;
	if (spank_get_item(sp, S_JOB_ARGV, &count, &words) != ESPANK_SUCCESS ||
	    spank_get_item(sp, S_JOB_ENV, &env) != ESPANK_SUCCESS)
		refuse(shell, "Slurm does not tell the task's command");
	char **line = calloc((size_t)count + 2, sizeof *line);
	if (!line)
		refuse(shell, strerror(errno));
	line[0] = (char *)shell;
	memcpy(line + 1, words, (size_t)count * sizeof *line);
	execve(shell, line, env);
	refuse(shell, strerror(errno));
	return FAIL;
}
