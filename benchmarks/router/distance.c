/* How far apart two cores are: nanoseconds for a word to go from one's cache to the other's and back.
 *
 *   distance CORE CORE
 *
 * The least mean of some short runs: whatever else runs on the cores can only make it longer.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { RUNS = 8, TRIPS = 1000 };

static atomic_int turn;

static void pin(int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void *answer(void *core) {
    pin(atoi(core));
    for (int i = 0; i < RUNS * TRIPS; i++) {
        while (atomic_load(&turn) != 1);
        atomic_store(&turn, 0);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "distance CORE CORE\n"), 2;
    pthread_t other;
    double least = 1e9;
    pin(atoi(argv[1]));
    pthread_create(&other, NULL, answer, argv[2]);
    for (int i = 0; i < RUNS; i++) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        for (int j = 0; j < TRIPS; j++) {
            atomic_store(&turn, 1);
            while (atomic_load(&turn) != 0);
        }
        clock_gettime(CLOCK_MONOTONIC, &to);
        double mean = ((to.tv_sec - from.tv_sec) * 1e9 + to.tv_nsec - from.tv_nsec) / TRIPS;
        if (mean < least) least = mean;
    }
    pthread_join(other, NULL);
    printf("%.1f\n", least);
}
