/* Runs argv[2] with the arguments behind it, argv[1] times, one after the other. */
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int status, failed = argc < 3;
	for (int at = 0; at < atoi(argv[1]); at++) {
		if (fork() == 0) {
			execv(argv[2], argv + 2);
			_exit(1);
		}
		failed |= wait(&status) < 0 || status != 0;
	}
	return failed;
}
