/* DIAL connects to port argv[1] and its caller ends the process at once. With `w` as second argument it says `ready` and
 * waits for a byte before, and for another one after. With a third argument it becomes that program at last, with the same
 * port plus one. */
#include "common.h"

NOINLINE static void DIAL(int port) { ATTEMPT(port); }

NOINLINE static void CALLER(int port, int argc, char **argv)
{
	int waits = argc > 2 && argv[2][0] == 'w';
	if (waits) {
		say("ready\n");
		wait_for_word();
	}
	DIAL(port);
	if (waits)
		wait_for_word();
	if (argc > 3) {
		char next[16];
		snprintf(next, sizeof next, "%d", port + 1);
		execl(argv[3], argv[3], next, (char *)0);
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	CALLER(atoi(argv[1]), argc, argv);
	sink++;
	return sink;
}
