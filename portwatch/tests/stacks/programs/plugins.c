/* Loads one library after the other to where the last one was, and lets each connect: argv[1] is the first's port,
 * argv[2] how often, then the libraries, each with a port of its own. Says how often one came to stand elsewhere. */
#include "common.h"

static void *place;

NOINLINE static int with_library(const char *path, int port)
{
	void *library = dlopen(path, RTLD_NOW);
	void (*run)(int) = (void (*)(int))dlsym(library, "run");
	int is_elsewhere = place && place != (void *)run;
	place = (void *)run;
	run(port);
	dlclose(library);
	return is_elsewhere;
}

int main(int argc, char **argv)
{
	int elsewhere = 0;
	for (int round = 0; round < atoi(argv[2]); round++)
		for (int at = 3; at < argc; at++)
			elsewhere += with_library(argv[at], atoi(argv[1]) + at - 3);
	printf("%d\n", elsewhere);
	return 0;
}
