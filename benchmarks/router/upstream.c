/* The upstream of the router benchmark: one thread, epoll, keep-alive.
 *
 *   upstream PORT
 *
 * A POST is answered with a fixed chat completion of about 400 bytes. If its body holds "stream":true the
 * answer is an event stream: the first chunk at once, then one every 20 ms until the client leaves. Streams
 * get one of 20 phases in turn, so that their chunks do not all fall into the same millisecond.
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
#include <unistd.h>

enum { MOST = 4096, ROOM = 1 << 17, PHASES = 20 };

struct connection {
    char *buffer;
    int used;
    int phase; /* -1 = not streaming */
};

static struct connection connections[MOST];
static char answer[1024];
static int answer_length, next_phase, timer;

static const char stream_head[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char event[] =
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n";
static char chunk[512];
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

static void reply(int fd, const char *body, int length) {
    if (!memmem(body, length, "\"stream\":true", 13)) {
        say(fd, answer, answer_length);
        return;
    }
    char first[sizeof stream_head + sizeof chunk];
    int head = sizeof stream_head - 1;
    memcpy(first, stream_head, head);
    memcpy(first + head, chunk, chunk_length);
    say(fd, first, head + chunk_length);
    connections[fd].phase = next_phase++ % PHASES;
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
        int length = field ? atoi(field + 17) : 0;
        *end = '\r';
        int total = (int)(end - c->buffer) + 4 + length;
        if (c->used < total) return;
        reply(fd, end + 4, length);
        memmove(c->buffer, c->buffer + total, c->used - total);
        c->used -= total;
    }
}

static void tick(void) {
    static int phase, highest;
    unsigned long long times;
    if (read(timer, &times, sizeof times) < 0) return;
    for (; times > 0; times--, phase = (phase + 1) % PHASES) {
        if (phase == 0)
            for (int fd = 0; fd < MOST; fd++)
                if (connections[fd].buffer) highest = fd;
        for (int fd = 0; fd <= highest; fd++)
            if (connections[fd].buffer && connections[fd].phase == phase) say(fd, chunk, chunk_length);
    }
}

int main(int argc, char **argv) {
    const char *body =
        "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,"
        "\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over the lazy dog and runs.\"},"
        "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":12,\"total_tokens\":22}}";
    answer_length = sprintf(answer, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                            strlen(body), body);
    chunk_length = sprintf(chunk, "%zx\r\n%s\r\n", sizeof event - 1, event);
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1, poll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0)};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) {
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
                connections[client] = (struct connection){malloc(ROOM), 0, -1};
                wanted.data.fd = client;
                epoll_ctl(poll, EPOLL_CTL_ADD, client, &wanted);
            } else if (connections[fd].buffer) {
                take(fd);
            }
        }
    }
}
