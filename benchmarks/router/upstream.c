/* The engine's stand-in of the router benchmark: one thread, epoll, keep-alive.
 *
 *   upstream PORT
 *
 * A POST is answered with a fixed chat completion. If its body asks for a stream the answer is an event
 * stream: the first chunk at once, then one every 20 ms until the client leaves. Streams get one of 20 phases
 * in turn, so that their chunks do not all fall into the same millisecond. The content of each chunk holds
 * "~NANOSECONDS:NUMBER~": when it was sent by CLOCK_MONOTONIC, and a count that grows by one. Words in the
 * body change the stream: "[slow]" sends one chunk a second, "[brief]" three chunks and [DONE] at once.
 *
 * GET /last returns the body of the last POST as it arrived here; any other GET what health checks and model
 * lists look for.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 16384, ROOM = 1 << 17, PHASES = 20, SLOW = 50 };

struct connection {
    char *buffer;
    int used;
    int phase; /* -1 = not streaming */
    int slow;
    unsigned number;
};

static struct connection connections[MOST];
static char answer[1024], last[ROOM + 256];
static int answer_length, last_length, next_phase, timer;
static unsigned round_number;

static const char stream_head[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char event_format[] =
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" ~%016llu:%08u~\"},\"finish_reason\":null}]}\n\n";
static const char models[] = "{\"object\":\"list\",\"data\":[{\"id\":\"engine\",\"object\":\"model\",\"created\":1,"
                             "\"owned_by\":\"bench\"}],\"status\":\"ok\",\"model_path\":\"engine\"}";
static char chunk[600];
static char *stamp; /* where in `chunk` the digits stand */
static int chunk_length;

static void drop(int fd) {
    free(connections[fd].buffer);
    connections[fd].buffer = NULL;
    close(fd);
}

static void say(int fd, const char *data, int length) {
    /* Answers are far below the socket's buffer; a full one means that the client stopped reading. */
    if (send(fd, data, length, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN) shutdown(fd, SHUT_RDWR);
}

static void say_json(int fd, const char *body, int length) {
    char text[ROOM + 256];
    int head = sprintf(text, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", length);
    memcpy(text + head, body, length);
    say(fd, text, head + length);
}

static void digits(char *at, int count, unsigned long long value) {
    while (count--) at[count] = '0' + value % 10, value /= 10;
}

static void stamp_chunk(struct connection *c) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    digits(stamp, 16, now.tv_sec * 1000000000ull + now.tv_nsec);
    digits(stamp + 17, 8, c->number++);
}

static void begin_stream(int fd, struct connection *c, int brief) {
    char first[sizeof stream_head + 4 * sizeof chunk];
    int length = sizeof stream_head - 1;
    memcpy(first, stream_head, length);
    for (int i = 0; i < (brief ? 3 : 1); i++) {
        stamp_chunk(c);
        memcpy(first + length, chunk, chunk_length);
        length += chunk_length;
    }
    if (brief) length += sprintf(first + length, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    say(fd, first, length);
    if (!brief) c->phase = next_phase++ % PHASES;
}

static int has(const char *body, int length, const char *word) {
    return memmem(body, length, word, strlen(word)) != NULL;
}

static void reply(int fd, const char *request, const char *body, int length) {
    struct connection *c = &connections[fd];
    if (!strncmp(request, "GET /last ", 10)) {
        say_json(fd, last, last_length);
        return;
    }
    if (!strncmp(request, "GET ", 4)) {
        say_json(fd, models, sizeof models - 1);
        return;
    }
    memcpy(last, body, last_length = length);
    if (!has(body, length, "\"stream\":true") && !has(body, length, "\"stream\": true")) {
        say(fd, answer, answer_length);
        return;
    }
    c->slow = has(body, length, "[slow]");
    c->number = 1;
    begin_stream(fd, c, has(body, length, "[brief]"));
}

/* Joins in place the chunks of a body that has arrived as a whole; its length, or -1 if it is not whole. */
static int joined(char *body, int room) {
    int from = 0, length = 0;
    for (;;) {
        char *line = memmem(body + from, room - from, "\r\n", 2);
        if (!line) return -1;
        int size = strtol(body + from, NULL, 16);
        if (size == 0) return length;
        from = (int)(line - body) + 2;
        if (from + size + 2 > room) return -1;
        memmove(body + length, body + from, size);
        length += size;
        from += size + 2;
    }
}

static void take(int fd) {
    struct connection *c = &connections[fd];
    int got = recv(fd, c->buffer + c->used, ROOM - 1 - c->used, MSG_DONTWAIT);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN) drop(fd);
        return;
    }
    c->used += got;
    c->buffer[c->used] = 0;
    char *end;
    while ((end = memmem(c->buffer, c->used, "\r\n\r\n", 4))) {
        *end = 0;
        char *field = strcasestr(c->buffer, "\r\ncontent-length:");
        int chunked = strcasestr(c->buffer, "\r\ntransfer-encoding:") != NULL;
        int length = field ? atoi(field + 17) : 0, before = (int)(end - c->buffer) + 4;
        *end = '\r';
        if (chunked) {
            /* Rare and small: whole only with the last chunk at the very end. */
            if (c->used < before + 5 || memcmp(c->buffer + c->used - 5, "0\r\n\r\n", 5)) return;
            length = joined(end + 4, c->used - before);
            if (length < 0) return;
            reply(fd, c->buffer, end + 4, length);
            c->used = 0;
            return;
        }
        if (c->used < before + length) return;
        reply(fd, c->buffer, end + 4, length);
        memmove(c->buffer, c->buffer + before + length, c->used - before - length);
        c->used -= before + length;
    }
}

static void tick(void) {
    static int phase, highest;
    unsigned long long times;
    if (read(timer, &times, sizeof times) < 0) return;
    for (; times > 0; times--, phase = (phase + 1) % PHASES) {
        if (phase == 0) {
            round_number++;
            for (int fd = 0; fd < MOST; fd++)
                if (connections[fd].buffer) highest = fd;
        }
        for (int fd = 0; fd <= highest; fd++) {
            struct connection *c = &connections[fd];
            if (!c->buffer || c->phase != phase) continue;
            if (c->slow && (round_number + fd) % SLOW) continue;
            stamp_chunk(c);
            say(fd, chunk, chunk_length);
        }
    }
}

int main(int argc, char **argv) {
    const char *body =
        "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,"
        "\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over the lazy dog and runs.\"},"
        "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":12,\"total_tokens\":22}}";
    answer_length = sprintf(answer, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                            strlen(body), body);
    char event[512];
    int event_length = sprintf(event, event_format, 0ull, 0u);
    chunk_length = sprintf(chunk, "%x\r\n%s\r\n", event_length, event);
    stamp = strchr(chunk, '~') + 1;
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1, poll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0)};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("upstream");
        return 1;
    }
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec pace = {{0, 1000000}, {0, 1000000}};
    timerfd_settime(timer, 0, &pace, NULL);
    struct epoll_event wanted = {.events = EPOLLIN}, ready[256];
    wanted.data.fd = listener;
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &wanted);
    wanted.data.fd = timer;
    epoll_ctl(poll, EPOLL_CTL_ADD, timer, &wanted);
    for (;;) {
        int count = epoll_wait(poll, ready, 256, -1);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd == timer) {
                tick();
            } else if (fd == listener) {
                int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (client < 0) continue;
                if (client >= MOST) {
                    close(client);
                    continue;
                }
                setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                connections[client] = (struct connection){.buffer = malloc(ROOM), .phase = -1};
                wanted.data.fd = client;
                epoll_ctl(poll, EPOLL_CTL_ADD, client, &wanted);
            } else if (connections[fd].buffer) {
                take(fd);
            }
        }
    }
}
