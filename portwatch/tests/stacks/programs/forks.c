/* Says `ready` and waits; then connects to port argv[1], and argv[2] children without exec do too, each to the next port
 * but one and from a child of its own to the one between, and are gone. */
#include "common.h"

NOINLINE static void dial(int port) { ATTEMPT(port); }

NOINLINE static void grandchild(int port) { dial(port); _exit(0); }

NOINLINE static void child(int port)
{
	dial(port);
	if (fork() == 0)
		grandchild(port + 1);
	_exit(0);
}

int main(int argc, char **argv)
{
	int port = atoi(argv[1]), children = argc > 2 ? atoi(argv[2]) : 0;
	say("ready\n");
	wait_for_word();
	dial(port);
	for (int at = 0; at < children; at++)
		if (fork() == 0)
			child(port + 1);
	while (wait(0) > 0)
		;
	wait_for_word();
	return 0;
}
