/* The client of the router benchmark: one thread, epoll.
 *
 *   load requests PORT CONNECTIONS SECONDS RATE FILE [PID...]
 *   load streams  PORT STREAMS     SECONDS 0    FILE [PID...]
 *
 * FILE holds one request, head and body, as it is sent again and again. RATE 0 is a closed loop: each connection
 * sends its next request when the answer has come. With a RATE, requests fall due that often a second whatever
 * the answers do, and the time of each is taken from when it was due, so that a stall counts for all that
 * wait through it. Streams are opened one a millisecond; what they bring is measured once all have begun
 * and half a second has passed. The stamps of `upstream.c` tell how long each chunk was on its way, and
 * whether one is missing.
 *
 * The result is one line of JSON. `cpu_s` is the processor time that the PIDs took between the first
 * and the last moment of the measurement, as their own clocks have it (nanoseconds, all threads).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 16384, ROOM = 1 << 16, SAMPLES = 1 << 23, STAMP = 27, WAITING = 1 << 16 };
enum { BEGIN_WITHIN_S = 20 };

struct connection {
    char *buffer;
    int used;
    int started;      /* of a stream: the head has been read */
    unsigned number;  /* of the last chunk; 0 = none yet */
    int64_t due;      /* when the request in flight should have been sent; 0 = none in flight */
};

static struct connection connections[MOST];
static struct sockaddr_in address;
static int poll_fd, pids, measuring;
static char **pid_list;
static char request[1 << 20], why[200];
static int request_length;
static int64_t *samples, sampled, failed, reconnected, lost, ended, chunks, began_ns, cpu_ns;

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    return clock_gettime(clock, &t) ? 0 : t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int64_t now(void) { return now_ns(CLOCK_MONOTONIC); }

static int64_t cpu_of_pids(void) {
    int64_t sum = 0;
    for (int i = 0; i < pids; i++) sum += now_ns((~(clockid_t)atoi(pid_list[i]) << 3) | 2); /* clock_getcpuclockid(3) */
    return sum;
}

static void sample(int64_t ns) {
    if (measuring && sampled < SAMPLES) samples[sampled++] = ns;
}

static void fail(const char *what, const char *text, int length) {
    failed += measuring;
    if (!why[0])
        for (int i = snprintf(why, 60, "%s: ", what), j = 0; i < (int)sizeof why - 1 && j < length; i++, j++)
            why[i] = text[j] < ' ' || text[j] == '"' || text[j] == '\\' || text[j] > '~' ? ' ' : text[j];
}

static int dial(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct timeval patience = {1, 0}; /* a full backlog would hold us up for minutes */
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (fd < 0 || fd >= MOST || connect(fd, (struct sockaddr *)&address, sizeof address)) {
        fail("connect", strerror(errno), strlen(strerror(errno)));
        if (fd >= 0) close(fd);
        return -1;
    }
    int room = 1 << 18; /* the largest request in one send */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &wanted);
    if (!connections[fd].buffer) connections[fd].buffer = malloc(ROOM);
    connections[fd].used = connections[fd].started = connections[fd].number = 0;
    connections[fd].due = 0;
    return fd;
}

static void ask(int fd, int64_t due) {
    connections[fd].due = due;
    for (int sent = 0; sent < request_length;) {
        int took = send(fd, request + sent, request_length - sent, MSG_NOSIGNAL);
        if (took < 0 && errno != EAGAIN) return; /* the read will tell */
        if (took > 0) sent += took;
    }
}

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void finish(double seconds) {
    qsort(samples, sampled, sizeof *samples, compare);
    double at[] = {0.5, 0.9, 0.99, 1};
    const char *names[] = {"p50", "p90", "p99", "max"};
    printf("{\"seconds\":%.6f,\"cpu_s\":%.6f,\"count\":%lld,\"failed\":%lld,\"reconnected\":%lld,\"chunks\":%lld,"
           "\"lost\":%lld,\"ended\":%lld",
           seconds, (cpu_of_pids() - cpu_ns) / 1e9, (long long)sampled, (long long)failed, (long long)reconnected,
           (long long)chunks, (long long)lost, (long long)ended);
    for (int i = 0; i < 4; i++) {
        int64_t index = sampled ? (int64_t)(at[i] * (sampled - 1)) : -1;
        printf(",\"%s_us\":%.1f", names[i], index < 0 ? -1.0 : samples[index] / 1e3);
    }
    printf(",\"why\":\"%s\"}\n", why);
    exit(0);
}

static void begin(void) {
    measuring = 1;
    sampled = failed = reconnected = lost = chunks = ended = 0;
    cpu_ns = cpu_of_pids();
    began_ns = now();
}

/* Whether a whole answer stands in the buffer; *status and *closing are set with the head. */
static int whole(struct connection *c, int *status, int *closing) {
    char *end = memmem(c->buffer, c->used, "\r\n\r\n", 4);
    if (!end) return 0;
    *end = 0;
    char *field = strcasestr(c->buffer, "\r\ncontent-length:");
    *closing = strcasestr(c->buffer, "\r\nconnection: close") != NULL;
    *status = atoi(c->buffer + 9);
    *end = '\r';
    if (field) return c->used >= (int)(end - c->buffer) + 4 + atoi(field + 17);
    return c->used >= 5 && !memcmp(c->buffer + c->used - 5, "0\r\n\r\n", 5);
}

static int queue[WAITING], queue_head, queue_tail; /* free connections */
static int64_t waiting[WAITING];                   /* due requests without a connection */
static unsigned waiting_head, waiting_tail;

static void next(int fd, double rate) {
    if (fd < 0) return;
    if (!rate)
        ask(fd, now());
    else if (waiting_head != waiting_tail)
        ask(fd, waiting[waiting_head++ % WAITING]);
    else
        queue[queue_tail++ % WAITING] = fd;
}

static void read_answer(int fd, double rate) {
    struct connection *c = &connections[fd];
    int got = recv(fd, c->buffer + c->used, ROOM - 1 - c->used, 0), status = 0, closing = 0;
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN) return;
        if (c->due) fail("closed", "the connection ended before the answer", 38);
        close(fd);
        next(dial(), rate);
        return;
    }
    c->used += got;
    c->buffer[c->used] = 0;
    if (c->used >= ROOM - 1) fail("answer", "too long", 8), c->used = 0;
    if (!whole(c, &status, &closing)) return;
    if (status == 200)
        sample(now() - c->due);
    else
        fail("answer", c->buffer, c->used);
    c->used = 0;
    c->due = 0;
    if (closing) {
        reconnected += measuring;
        close(fd);
        fd = dial();
    }
    next(fd, rate);
}

static void run_requests(int count, double seconds, double rate) {
    for (int i = 0; i < count; i++) next(dial(), rate);
    begin();
    int64_t end = began_ns + seconds * 1e9, due = began_ns, step = rate ? 1e9 / rate : 0;
    struct epoll_event ready[256];
    for (;;) {
        int64_t at = now();
        if (at >= end) finish((at - began_ns) / 1e9);
        for (; step && due <= at; due += step) {
            if (queue_head != queue_tail)
                ask(queue[queue_head++ % WAITING], due);
            else if (waiting_tail - waiting_head < WAITING)
                waiting[waiting_tail++ % WAITING] = due;
            else
                fail("overload", "more requests due than can wait", 31);
        }
        int64_t left = (step && due < end ? due : end) - now();
        struct timespec pause = {0, left < 0 ? 0 : left % 1000000000};
        if (left >= 1000000000) pause.tv_sec = left / 1000000000;
        int events = epoll_pwait2(poll_fd, ready, 256, &pause, NULL);
        for (int i = 0; i < events; i++) read_answer(ready[i].data.fd, rate);
    }
}

static int running; /* streams that have brought a chunk */

static void read_chunks(int fd) {
    struct connection *c = &connections[fd];
    int got = recv(fd, c->buffer + c->used, ROOM - 1 - c->used, 0);
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN) return;
        ended++;
        fail("ended", c->buffer, c->used);
        running -= c->number > 0;
        close(fd);
        return;
    }
    c->used += got;
    c->buffer[c->used] = 0;
    if (!c->started) {
        if (!memmem(c->buffer, c->used, "\r\n\r\n", 4)) return;
        c->started = 1;
        if (atoi(c->buffer + 9) != 200) fail("answer", c->buffer, c->used);
    }
    char *at = c->buffer, *found;
    int64_t when = now();
    while ((found = memchr(at, '~', c->buffer + c->used - at))) {
        if (found + STAMP > c->buffer + c->used) break;
        unsigned number = atoi(found + 18);
        if (found[17] != ':' || found[26] != '~') {
            at = found + 1;
            continue;
        }
        if (!c->number)
            running++;
        else if (measuring && number > c->number + 1)
            lost += number - c->number - 1;
        c->number = number;
        if (measuring) chunks++;
        sample(when - atoll(found + 1));
        at = found + STAMP;
    }
    c->used = found ? c->buffer + c->used - found : 0;
    if (found) memmove(c->buffer, found, c->used);
}

static void run_streams(int count, double seconds) {
    struct epoll_event ready[256];
    int opened = 0;
    int64_t first = now(), end = 0, settled = 0;
    for (;;) {
        int64_t at = now();
        if (end && at >= end) finish((at - began_ns) / 1e9);
        if (opened < count && !settled && at >= first + opened * 1000000ll) {
            int fd = dial();
            if (fd >= 0) ask(fd, at);
            opened++;
        }
        if (!settled && (running >= count || at > first + count * 1000000ll + BEGIN_WITHIN_S * 1000000000ll))
            settled = at + 500000000;
        if (!end && settled && at >= settled) {
            int missing = count - running;
            begin();
            ended = missing; /* what never began counts as what broke off */
            end = began_ns + seconds * 1e9;
        }
        struct timespec pause = {0, 1000000};
        int events = epoll_pwait2(poll_fd, ready, 256, &pause, NULL);
        for (int i = 0; i < events; i++) read_chunks(ready[i].data.fd);
    }
}

int main(int argc, char **argv) {
    if (argc < 7) return fprintf(stderr, "see the head of load.c\n"), 2;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    FILE *file = fopen(argv[6], "rb");
    if (!file) return perror(argv[6]), 1;
    request_length = fread(request, 1, sizeof request, file);
    pid_list = argv + 7;
    pids = argc - 7;
    poll_fd = epoll_create1(0);
    prctl(PR_SET_TIMERSLACK, 1); /* the kernel else wakes up to 50 us late */
    samples = malloc(SAMPLES * sizeof *samples);
    if (!strcmp(argv[1], "streams")) run_streams(atoi(argv[3]), atof(argv[4]));
    run_requests(atoi(argv[3]), atof(argv[4]), atof(argv[5]));
}
