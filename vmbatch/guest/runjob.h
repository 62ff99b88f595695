/* What the two halves of the guest's helper share. */
#ifndef RUNJOB_H
#define RUNJOB_H
#include <stddef.h>
#include <stdint.h>

/* A folder of the job's user in the guest; guest/init.sh makes it. */
#ifndef HOME_OF_HELPER
#define HOME_OF_HELPER "/var/lib/vmbatch/job"
#endif

void send_frame(char type, const void *data, uint32_t size); /* blocking; used where nothing else can happen */
void say(const char *format, ...);                           /* a sentence for the job's owner, frame '!' */

void mark(int brought);                       /* from now on, whatever changes is the job's output */
void collect(const char *directory);   /* sends what changed below it: frames 'F' of a tar stream, then 'Z' */
void collected(void);                  /* the host has it all: later collections start here */
#endif
