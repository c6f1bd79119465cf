/* Connects from known places: the destination port says which path led there, and `ATTEMPT(n)` stands on the line that a
 * call site must name. Nobody listens, so a connect gets a port, is refused, and leaves nothing behind.
 *
 * Arguments: first port, threads, rounds, microseconds between walks, bytes of the alloca. The main thread and the others walk every path until a
 * byte comes on standard input; then, when all have stopped, `warm` is printed, and at the next byte each walks every
 * path `rounds` times. The last lines tell how often each was walked. Build without frame pointers. */
#define _GNU_SOURCE
#include <alloca.h>
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <search.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PATHS 16
#define NOINLINE __attribute__((noinline, noclone))

static volatile int sink;
static int first_port, rounds, pause_us, alloca_bytes;
static atomic_long made[PATHS];
static atomic_int is_steady;
static pthread_barrier_t barrier;

static struct sockaddr_in address(int path)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)(first_port + path))};
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return to;
}

/* A macro: the function that it stands in calls connect() itself. */
#define ATTEMPT(path) \
	do { \
		struct sockaddr_in to = address(path); \
		int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); \
		sink += connect(s, (struct sockaddr *)&to, sizeof to); \
		sink += close(s); \
		made[path]++; \
	} while (0)

NOINLINE static void direct(void) { ATTEMPT(0); }

NOINLINE static void plain_inner(void) { ATTEMPT(1); }
NOINLINE static void plain_middle(void) { plain_inner(); sink++; }
NOINLINE static void plain(void) { plain_middle(); sink++; }

NOINLINE static void with_alloca(int n)
{
	char *p = alloca(n);
	memset(p, 1, n);
	__asm__ volatile("" : : "r"(p) : "memory");
	ATTEMPT(2);
	sink += p[n / 2];
}

NOINLINE static void recurse(int n)
{
	if (n == 0)
		ATTEMPT(3);
	else
		recurse(n - 1);
	sink++;
}

NOINLINE static void recurse_far(int n)
{
	if (n == 0)
		ATTEMPT(4);
	else
		recurse_far(n - 1);
	sink++;
}

/* Once a sort: how often a sort compares is its own business. */
static _Thread_local int has_compared;
static int compare(const void *a, const void *b)
{
	if (!has_compared++)
		ATTEMPT(5);
	return *(const int *)a - *(const int *)b;
}

NOINLINE static void sort(void)
{
	int values[4] = {3, 1, 2, 0};
	has_compared = 0;
	qsort(values, 4, sizeof *values, compare);
	sink += values[0];
}

static int found(const void *a, const void *b)
{
	if (!has_compared++)
		ATTEMPT(6);
	return *(const int *)a - *(const int *)b;
}

NOINLINE static void search(void)
{
	int key = 2, values[4] = {0, 1, 2, 3};
	size_t count = 4;
	has_compared = 0;
	sink += lfind(&key, values, &count, sizeof *values, found) != 0;
}

/* A frame aligned by 64 bytes, as code with wide vectors has it: the frame pointer is the CFA's register. */
NOINLINE static void realigned(int n)
{
	_Alignas(64) char buffer[256];
	memset(buffer, n, sizeof buffer);
	__asm__ volatile("" : : "r"(buffer) : "memory");
	ATTEMPT(7);
	sink += buffer[n];
}

/* Arguments on the stack and an aligned frame: GCC keeps a pointer to the arguments, and the CFA is a word in memory. */
NOINLINE static void realigned_with_arguments(long a, long b, long c, long d, long e, long f, long g, long h, int n)
{
	_Alignas(64) char buffer[256];
	char *p = alloca(n);
	memset(buffer, n, sizeof buffer);
	memset(p, 2, n);
	__asm__ volatile("" : : "r"(buffer), "r"(p) : "memory");
	ATTEMPT(8);
	sink += buffer[n & 127] + p[0] + (int)(a + b + c + d + e + f + g + h);
}

__attribute__((force_align_arg_pointer)) NOINLINE static void aligned_by_attribute(void) { ATTEMPT(9); }

/* Deeper than what is copied of a stack at once. */
NOINLINE static void big_frame(int n)
{
	char buffer[40960];
	memset(buffer, n, sizeof buffer);
	__asm__ volatile("" : : "r"(buffer) : "memory");
	ATTEMPT(10);
	sink += buffer[n];
}

/* Pages in the middle of this frame are never touched, so they cannot be read. */
NOINLINE static void sparse_frame(int n)
{
	volatile char buffer[40960];
	buffer[0] = (char)n;
	ATTEMPT(11);
	sink += buffer[0];
}

static void on_signal(int signal) { ATTEMPT(12); sink += signal; }
static void on_other_stack(int signal) { ATTEMPT(13); sink += signal; }

NOINLINE static void signalled(void) { raise(SIGUSR1); sink++; }
NOINLINE static void signalled_elsewhere(void) { raise(SIGUSR2); sink++; }

/* Two places in one function. */
NOINLINE static void twice(void)
{
	ATTEMPT(14);
	sink++;
	ATTEMPT(15);
}

NOINLINE static void walk_all(void)
{
	direct(); plain();
	with_alloca(alloca_bytes);
	recurse(20); recurse_far(45);
	sort(); search();
	realigned(1);
	realigned_with_arguments(1, 2, 3, 4, 5, 6, 7, 8, alloca_bytes);
	aligned_by_attribute();
	big_frame(1); sparse_frame(1);
	signalled(); signalled_elsewhere();
	twice();
	sink++;
}

NOINLINE static void work(void)
{
	int is_counting = 0;
	stack_t other = {.ss_sp = malloc(65536), .ss_size = 65536};
	sigaltstack(&other, 0);
	/* One call, so that all walks come from the same place. */
	for (int round = 0; round < rounds; round += is_counting) {
		if (is_steady && !is_counting) {
			pthread_barrier_wait(&barrier);
			pthread_barrier_wait(&barrier);
			is_counting = 1;
		}
		walk_all();
		usleep(pause_us);
	}
	sink++;
}

static void *thread_main(void *unused)
{
	work();
	sink++;
	return unused;
}

/* Reads the commands. */
static void *listen_main(void *unused)
{
	char byte;
	sink += (int)read(0, &byte, 1);
	is_steady = 1;
	pthread_barrier_wait(&barrier);
	puts("warm");
	fflush(stdout);
	sink += (int)read(0, &byte, 1);
	pthread_barrier_wait(&barrier);
	return unused;
}

int main(int argc, char **argv)
{
	if (argc != 6)
		return 2;
	int threads = atoi(argv[2]);
	first_port = atoi(argv[1]);
	rounds = atoi(argv[3]);
	pause_us = atoi(argv[4]);
	alloca_bytes = atoi(argv[5]);
	struct sigaction action = {.sa_handler = on_signal};
	sigaction(SIGUSR1, &action, 0);
	action.sa_handler = on_other_stack;
	action.sa_flags = SA_ONSTACK;
	sigaction(SIGUSR2, &action, 0);
	pthread_barrier_init(&barrier, 0, (unsigned)threads + 2);
	pthread_t ids[threads + 1];
	pthread_create(&ids[threads], 0, listen_main, 0);
	for (int at = 0; at < threads; at++)
		pthread_create(&ids[at], 0, thread_main, 0);
	work();
	for (int at = 0; at <= threads; at++)
		pthread_join(ids[at], 0);
	for (int path = 0; path < PATHS; path++)
		printf("%d %ld\n", path, made[path]);
	return 0;
}
