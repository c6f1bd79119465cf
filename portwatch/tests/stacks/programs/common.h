/* What the small programs share. ATTEMPT is a macro, so that the function it stands in calls connect() itself. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

#define ATTEMPT(port) \
	do { \
		struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)(port))}; \
		to.sin_addr.s_addr = htonl(INADDR_LOOPBACK); \
		int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); \
		sink += connect(s, (struct sockaddr *)&to, sizeof to); \
		sink += close(s); \
	} while (0)

static volatile int sink;

/* Waits for a byte, if it is to. */
static inline void wait_for_word(void)
{
	char byte;
	sink += (int)read(0, &byte, 1);
}

static inline void say(const char *word)
{
	sink += (int)write(1, word, strlen(word));
}
