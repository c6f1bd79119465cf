/* One call path per name, each ending in a blocking poll(). Built without frame pointers; the functions on a path are
 * known, so a walk can be compared with what is true. Every call is followed by a write to `sink`, so that none of them
 * becomes a jump. */
#define _GNU_SOURCE
#include <alloca.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

static volatile int sink;

NOINLINE static void block_here(void)
{
	sink += (int)write(1, "!", 1);
	sink += poll(0, 0, -1);
}

NOINLINE static void plain_inner(void) { block_here(); sink++; }
NOINLINE static void plain_middle(void) { plain_inner(); sink++; }
NOINLINE static void plain(void) { plain_middle(); sink++; }

NOINLINE static void with_alloca(int n)
{
	char *p = alloca(n);
	memset(p, 1, n);
	block_here();
	sink += p[n / 2];
}

NOINLINE static void recurse(int n)
{
	if (n == 0)
		block_here();
	else
		recurse(n - 1);
	sink++;
}

static int compare(const void *a, const void *b)
{
	static int done;
	if (!done) {
		done = 1;
		block_here();
	}
	return *(const int *)a - *(const int *)b;
}

NOINLINE static void callback(void)
{
	int values[4] = {3, 1, 2, 0};
	qsort(values, 4, sizeof *values, compare);
	sink += values[0];
}

NOINLINE static void realigned(int n)
{
	_Alignas(64) char buffer[256];
	memset(buffer, n, sizeof buffer);
	__asm__ volatile("" : : "r"(buffer) : "memory");
	block_here();
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
	block_here();
	sink += buffer[n] + p[0] + (int)(a + b + c + d + e + f + g + h);
}

NOINLINE static void big_frame(int n)
{
	char buffer[40960];
	memset(buffer, n, sizeof buffer);
	__asm__ volatile("" : : "r"(buffer) : "memory");
	block_here();
	sink += buffer[n];
}

/* Pages in the middle of this frame are never touched, so they cannot be read. */
NOINLINE static void sparse_frame(int n)
{
	volatile char buffer[40960];
	buffer[0] = (char)n;
	block_here();
	sink += buffer[0];
}

static void on_signal(int signal)
{
	block_here();
	sink += signal;
}

NOINLINE static void in_signal_handler(void)
{
	signal(SIGUSR1, on_signal);
	raise(SIGUSR1);
	sink++;
}

static void *thread_main(void *argument)
{
	plain_middle();
	sink++;
	return argument;
}

NOINLINE static void in_thread(void)
{
	pthread_t thread;
	pthread_create(&thread, 0, thread_main, 0);
	pthread_join(thread, 0);
	sink++;
}

int main(int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : "direct";
	if (!strcmp(path, "direct"))
		block_here();
	else if (!strcmp(path, "plain"))
		plain();
	else if (!strcmp(path, "alloca"))
		with_alloca(argc * 500);
	else if (!strcmp(path, "recursion"))
		recurse(75);
	else if (!strcmp(path, "callback"))
		callback();
	else if (!strcmp(path, "realigned"))
		realigned(argc);
	else if (!strcmp(path, "realigned_with_arguments"))
		realigned_with_arguments(1, 2, 3, 4, 5, 6, 7, 8, argc * 100);
	else if (!strcmp(path, "big_frame"))
		big_frame(argc);
	else if (!strcmp(path, "sparse_frame"))
		sparse_frame(argc);
	else if (!strcmp(path, "signal"))
		in_signal_handler();
	else if (!strcmp(path, "thread"))
		in_thread();
	sink++;
	return sink;
}
