/* A library with one function under a name of its own. FRAME is what it has on its stack. */
#include "common.h"

NOINLINE static void DIAL(int port)
{
	volatile char frame[FRAME];
	frame[0] = 1;
	ATTEMPT(port);
	sink += frame[0];
}

void run(int port) { DIAL(port); sink++; }
