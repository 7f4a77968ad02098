/* The load of the benchmark: WebSocket clients, publishers and HTTP clients in one thread over epoll.
 *
 * It reads one command a line on stdin and answers each with one line of JSON on stdout, so whoever drives it can read
 * the server's CPU in between. Pings are answered at all times. What goes wrong is answered with {"error":"..."} and
 * ends the program: a run in which anything unexpected happened gives no figures.
 *
 *   connect PORT FILE WINDOW
 *       One WebSocket to a line of FILE, WINDOW handshakes at a time. A line is the request's target, then whole header
 *       lines, with tabs between. Connections are numbered from 0, through all connects.
 *       {"connected":N,"seconds":S,"packets":P}
 *   settle SECONDS
 *       Waits until no message has come for SECONDS. Counts what has come since the command before.
 *       {"packets":P,"bytes":B}
 *   publish REDIS_PORT CHANNEL_PREFIX FORMAT COUNT OUTSTANDING RATE SIZE
 *       Publishes COUNT messages of about SIZE bytes to the channels CHANNEL_PREFIX<connection> and waits for each on
 *       its connection. RATE 0: OUTSTANDING at a time. Otherwise RATE a second, come what may. FORMAT raw: the message
 *       is the JSON. FORMAT framed: its version as 8 bytes, big-endian, and a zero byte stand before it.
 *       {"published":N,"delivered":N,"lost":N,"stale":N,"seconds":S,"p50_us":U,"p99_us":U,"own_cpu_us":U}
 *   frames FILE WINDOW PACKETS
 *       Sends the texts of FILE, whose lines are a connection's number, a tab and a text. WINDOW unanswered at a time,
 *       one to a connection, whose lines keep their order. {"type":"result" answers one. Ends with the last answer when
 *       PACKETS info packets have come, too, on whatever connection.
 *       {"answered":N,"packets":P,"unanswered":0,"missing":0,"seconds":S,"p50_us":U,"p99_us":U,"own_cpu_us":U}
 *   requests PORT FILE CONNECTIONS PACKETS
 *       The same with HTTP/1.1. FILE holds whole requests, each after its length in decimal and a newline. They are
 *       sent over CONNECTIONS kept alive, one at a time on each. Every answer has to be a 200.
 *   quit
 *
 * Info packets are texts that begin {"type":"info". A command that waits gives up after 10 seconds in which nothing
 * came, and answers what it has. own_cpu_us is this program's CPU for each delivery or answer.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define SECOND_US UINT64_C(1000000)
#define PATIENCE_US (10 * SECOND_US)

/* Few events at a time, so that what they free is published soon: long batches would let the server run dry. */
#define EVENTS 64

/* The most that one recv takes. Whoever got less has drained the socket. */
#define RECV_SIZE (256 * 1024)

/* --- Failing, memory, time */

/* Bytes beyond ASCII are escaped one by one: servers' texts may be cut anywhere, and the line has to stay JSON. */
static void print_quoted(const char *text)
{
    putchar('"');
    for (const unsigned char *at = (const unsigned char *)text; *at; at++) {
        if (*at == '"' || *at == '\\')
            printf("\\%c", *at);
        else if (*at < 0x20 || *at > 0x7e)
            printf("\\u%04x", *at);
        else
            putchar(*at);
    }
    putchar('"');
}

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    printf("{\"error\":");
    print_quoted(text);
    printf("}\n");
    fflush(stdout);
    exit(1);
}

static void *resized(void *memory, size_t count, size_t size)
{
    /* An empty array is a pointer, too: NULL then always means that memory has run out. */
    void *larger = reallocarray(memory, count ? count : 1, size);
    if (!larger)
        fail("out of memory");
    return larger;
}

static void *zeroed(size_t count, size_t size)
{
    return memset(resized(NULL, count, size), 0, count * size);
}

static uint64_t clock_us(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * SECOND_US + (uint64_t)time.tv_nsec / 1000;
}

static uint64_t now_us(void) { return clock_us(CLOCK_MONOTONIC); }

static uint64_t own_cpu_us(void) { return clock_us(CLOCK_PROCESS_CPUTIME_ID); }

/* Notices that a count has stood still for too long. */
struct patience {
    uint64_t count, since;
};

static struct patience patience_from_now(void) { return (struct patience){0, now_us()}; }

static bool exhausted(struct patience *patience, uint64_t count)
{
    uint64_t now = now_us();
    if (count != patience->count)
        *patience = (struct patience){count, now};
    return now - patience->since > PATIENCE_US;
}

/* --- Streams: sockets that keep what was cut off at either end */

struct buffer {
    size_t start, end, room;
    char bytes[];
};

static size_t buffered(const struct buffer *buffer) { return buffer ? buffer->end - buffer->start : 0; }

static void release(struct buffer **buffer)
{
    free(*buffer);
    *buffer = NULL;
}

/* Makes room for `size` more bytes and answers where they go; the caller moves `end`. */
static char *room_for(struct buffer **buffer, size_t size)
{
    size_t end = *buffer ? (*buffer)->end : 0;
    if (!*buffer || (*buffer)->room - end < size) {
        size_t room = *buffer ? 2 * end + size : size;
        bool fresh = !*buffer;
        *buffer = resized(*buffer, 1, sizeof **buffer + room);
        (*buffer)->room = room;
        if (fresh)
            (*buffer)->start = (*buffer)->end = 0;
    }
    return (*buffer)->bytes + end;
}

static void append(struct buffer **buffer, const char *bytes, size_t size)
{
    memcpy(room_for(buffer, size), bytes, size);
    (*buffer)->end += size;
}

/* There are ten thousand of these, mostly with nothing cut off: two pointers are all that an idle one needs. */
struct stream {
    int fd;
    struct buffer *unread; /* received, but not whole */
    struct buffer *unsent; /* did not fit into the socket */
};

enum kind { WEBSOCKET, REQUESTER, REDIS, TICK };

static int epoll_fd;

/* What has come over WebSockets since the last answer; texts are counted from the start. */
static uint64_t packets, bytes_received, texts;

static const char *kind_name(enum kind kind)
{
    return kind == WEBSOCKET ? "connection" : kind == REQUESTER ? "HTTP connection" : "Redis connection";
}

/* Edge-triggered and for both directions, once and for all: no epoll_ctl later, and no second look by epoll_wait at
 * sockets that were drained. */
static void watch(int fd, enum kind kind, uint32_t index)
{
    struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {.u64 = (uint64_t)kind << 32 | index}};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
        fail("epoll_ctl: %s", strerror(errno));
}

/* A socket whose connection to `port` is under way. */
static int begin_connection(uint16_t port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fail("connect to port %u: %s", port, strerror(errno));
    return fd;
}

static void check_connected(int fd)
{
    int error = 0;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
    if (error)
        fail("connect: %s", strerror(error));
}

/* A connection that stands already, for those of which there are few. */
static int open_connection(uint16_t port)
{
    int fd = begin_connection(port);
    struct pollfd writable = {.fd = fd, .events = POLLOUT};
    if (poll(&writable, 1, 10000) != 1)
        fail("connect to port %u: no answer", port);
    check_connected(fd);
    return fd;
}

/* How much of `size` bytes the socket takes now. An error shows again, with its reason, in the next recv. */
static size_t try_send(int fd, const char *bytes, size_t size)
{
    ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
    return sent < 0 ? 0 : (size_t)sent;
}

static void flush(struct stream *stream)
{
    struct buffer *unsent = stream->unsent;
    if (!buffered(unsent))
        return;
    unsent->start += try_send(stream->fd, unsent->bytes + unsent->start, buffered(unsent));
    if (unsent->start == unsent->end)
        unsent->start = unsent->end = 0;
}

static void send_all(struct stream *stream, const char *bytes, size_t size)
{
    size_t sent = buffered(stream->unsent) ? 0 : try_send(stream->fd, bytes, size);
    if (sent < size)
        append(&stream->unsent, bytes + sent, size - sent);
}

static void writable(struct stream *stream)
{
    if (!stream->unsent)
        return;
    flush(stream);
    if (!buffered(stream->unsent))
        release(&stream->unsent);
}

/* Uses what has come, and answers how much of it: the rest is not whole yet. */
typedef size_t take_function(uint32_t index, const char *bytes, size_t size);

/* Everything is received into this one buffer; only what is left over is stored with its stream. */
static char input[16 * 1024 * 1024];

static void keep_rest(struct stream *stream, const char *rest, size_t size)
{
    release(&stream->unread);
    if (size)
        append(&stream->unread, rest, size);
}

/* One recv. Whether there may be more in the socket.
 *
 * Half of what it costs is the acknowledgement that the kernel sends at once. TCP_QUICKACK would put it off to a timer,
 * but then whoever runs when that fires pays for it, and it may be the server. */
static bool receive_some(struct stream *stream, enum kind kind, uint32_t index, take_function *take)
{
    size_t held = buffered(stream->unread), room = sizeof input - held;
    size_t wanted = room < RECV_SIZE ? room : RECV_SIZE;
    if (!wanted)
        fail("%s %u: a message of more than %zu bytes", kind_name(kind), index, sizeof input);
    ssize_t got = recv(stream->fd, input + held, wanted, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return errno == EINTR;
    if (got <= 0)
        fail("%s %u was closed by the server: %s", kind_name(kind), index, got ? strerror(errno) : "end of stream");
    if (kind == WEBSOCKET)
        bytes_received += (uint64_t)got;
    if (held)
        memcpy(input, stream->unread->bytes, held);
    size_t size = held + (size_t)got, used = take(index, input, size);
    if (held || used < size)
        keep_rest(stream, input + used, size - used);
    return (size_t)got == wanted;
}

/* After a short recv the next edge tells of more, except of an end that has shown already: that is read, too. */
static void receive(struct stream *stream, enum kind kind, uint32_t index, take_function *take, uint32_t events)
{
    bool ended = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
    while (receive_some(stream, kind, index, take) || ended)
        ;
}

/* --- WebSockets */

enum state { CONNECTING, SHAKING_HANDS, OPEN };

struct websocket {
    struct stream stream;
    uint64_t sent_at;  /* when its frame was sent that is not answered yet */
    uint32_t expected; /* the number of the message that it gets next */
    enum state state;
};

static struct websocket *websockets;
static uint32_t websocket_count;
static uint32_t open_count;

/* Set by the command that wants to see messages. */
static void (*on_text)(uint32_t index, const char *text, size_t size);

static bool begins(const char *text, size_t size, const char *prefix)
{
    size_t length = strlen(prefix);
    return size >= length && !memcmp(text, prefix, length);
}

static void take_text(uint32_t index, const char *text, size_t size)
{
    texts++;
    packets += begins(text, size, "{\"type\":\"info\"");
    if (on_text)
        on_text(index, text, size);
}

/* The most that a frame's head takes: two bytes, a length of eight, a mask of four. */
#define HEAD_SIZE 14

/* Writes the head of a client's frame and answers its size. A mask of zeros satisfies the server and needs no pass
 * over the payload. */
static size_t frame_head(char head[HEAD_SIZE], uint8_t opcode, size_t size)
{
    size_t length_bytes = size < 126 ? 0 : size < 65536 ? 2 : 8;
    memset(head, 0, HEAD_SIZE);
    head[0] = (char)(0x80 | opcode);
    head[1] = (char)(0x80 | (length_bytes == 0 ? size : length_bytes == 2 ? 126 : 127));
    for (size_t n = 0; n < length_bytes; n++)
        head[2 + n] = (char)(size >> 8 * (length_bytes - 1 - n));
    return 2 + length_bytes + 4;
}

static void send_frame(struct stream *stream, uint8_t opcode, const char *payload, size_t size)
{
    static char *frame;
    static size_t room;
    if (room < HEAD_SIZE + size)
        frame = resized(frame, room = HEAD_SIZE + size, 1);
    size_t head = frame_head(frame, opcode, size);
    memcpy(frame + head, payload, size);
    send_all(stream, frame, head + size);
}

__attribute__((noreturn)) static void closed(uint32_t index, const char *payload, size_t size)
{
    const unsigned char *code = (const unsigned char *)payload;
    if (size < 2)
        fail("connection %u was closed by the server without a code", index);
    fail("connection %u was closed by the server: %d %.*s", index, code[0] << 8 | code[1], (int)size - 2, payload + 2);
}

static void take_frame(uint32_t index, uint8_t first, const char *payload, size_t size)
{
    switch (first) {
    case 0x81:
        take_text(index, payload, size);
        break;
    case 0x88:
        closed(index, payload, size);
    case 0x89:
        send_frame(&websockets[index].stream, 0xA, payload, size);
        break;
    case 0x8A:
        break;
    default: /* nobody negotiated compression, and servers do not cut or mask what is this small */
        fail("connection %u: a frame that begins with the byte %#x", index, first);
    }
}

/* The size of a frame's head, and its payload's in *payload. 0 if even the head is cut. */
static size_t read_head(const unsigned char *bytes, size_t size, uint64_t *payload)
{
    if (size < 2)
        return 0;
    if (bytes[1] & 0x80)
        fail("a server masked a frame");
    size_t length_bytes = bytes[1] < 126 ? 0 : bytes[1] == 126 ? 2 : 8;
    if (size < 2 + length_bytes)
        return 0;
    *payload = length_bytes ? 0 : bytes[1];
    for (size_t n = 0; n < length_bytes; n++)
        *payload = *payload << 8 | bytes[2 + n];
    return 2 + length_bytes;
}

static size_t take_frames(uint32_t index, const char *bytes, size_t size)
{
    size_t used = 0, head;
    uint64_t payload;
    while ((head = read_head((const unsigned char *)bytes + used, size - used, &payload))) {
        if (payload > size - used - head)
            break;
        take_frame(index, (uint8_t)bytes[used], bytes + used + head, payload);
        used += head + payload;
    }
    return used;
}

static size_t take_handshake(uint32_t index, const char *bytes, size_t size)
{
    const char *end = memmem(bytes, size, "\r\n\r\n", 4);
    if (!end)
        return 0;
    if (!begins(bytes, size, "HTTP/1.1 101 "))
        fail("connection %u: the handshake was answered %.*s", index, (int)(size < 500 ? size : 500), bytes);
    websockets[index].state = OPEN;
    open_count++;
    return (size_t)(end - bytes) + 4;
}

static size_t take_from_websocket(uint32_t index, const char *bytes, size_t size)
{
    size_t used = websockets[index].state == OPEN ? 0 : take_handshake(index, bytes, size);
    if (websockets[index].state == OPEN)
        used += take_frames(index, bytes + used, size - used);
    return used;
}

/* --- The loop */

static struct stream redis;
static int ticks = -1; /* the timer of a paced publisher */
static void shake_hands(uint32_t index);
static take_function take_from_requester, take_from_redis;
static struct stream *requester_stream(uint32_t index);

static void serve_websocket(uint32_t index, uint32_t events)
{
    struct websocket *websocket = &websockets[index];
    if (websocket->state == CONNECTING)
        shake_hands(index);
    if (events & EPOLLOUT)
        writable(&websocket->stream);
    if (events & ~(uint32_t)EPOLLOUT)
        receive(&websocket->stream, WEBSOCKET, index, take_from_websocket, events);
}

static void serve_event(const struct epoll_event *event)
{
    uint32_t index = (uint32_t)event->data.u64;
    switch ((enum kind)(event->data.u64 >> 32)) {
    case WEBSOCKET:
        serve_websocket(index, event->events);
        break;
    case REQUESTER:
        writable(requester_stream(index));
        receive(requester_stream(index), REQUESTER, index, take_from_requester, event->events);
        break;
    case REDIS: /* its buffer is used again and again: it is not released */
        flush(&redis);
        receive(&redis, REDIS, index, take_from_redis, event->events);
        break;
    case TICK: /* it has ended epoll_wait, which was its purpose; without the read there would be no other */
        (void)!read(ticks, &(uint64_t){0}, sizeof(uint64_t));
        break;
    }
}

/* Does what there is to do, after a wait of at most `most_ms`. */
static void serve(int most_ms)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll_fd, events, EVENTS, most_ms);
    for (int n = 0; n < count; n++)
        serve_event(&events[n]);
}

/* --- Files */

static char *read_file(const char *name, size_t *size)
{
    FILE *file = fopen(name, "rb");
    struct stat status;
    if (!file || fstat(fileno(file), &status))
        fail("%s: %s", name, strerror(errno));
    *size = (size_t)status.st_size;
    char *content = resized(NULL, *size + 1, 1);
    if (fread(content, 1, *size, file) != *size)
        fail("%s: cut short", name);
    content[*size] = 0;
    fclose(file);
    return content;
}

/* A piece of a file, and the connection that it belongs to. */
struct piece {
    const char *bytes;
    size_t size;
    uint32_t connection;
    uint32_t next; /* the next piece of that connection */
};

#define NO_PIECE UINT32_MAX

struct pieces {
    char *content;
    struct piece *all;
    uint32_t count;
};

static void add_piece(struct pieces *pieces, const char *bytes, size_t size)
{
    /* Room is doubled whenever the count is a power of two. */
    if (!(pieces->count & (pieces->count - 1)))
        pieces->all = resized(pieces->all, pieces->count ? 2 * (size_t)pieces->count : 1, sizeof *pieces->all);
    pieces->all[pieces->count++] = (struct piece){bytes, size, 0, NO_PIECE};
}

static void free_pieces(struct pieces *pieces)
{
    free(pieces->content);
    free(pieces->all);
}

static struct pieces read_lines(const char *name)
{
    size_t size;
    struct pieces lines = {.content = read_file(name, &size)};
    for (char *at = lines.content, *end = at + size, *stop; at < end; at = stop + 1) {
        if (!(stop = memchr(at, '\n', (size_t)(end - at))))
            stop = end;
        *stop = 0;
        add_piece(&lines, at, (size_t)(stop - at));
    }
    return lines;
}

/* --- connect */

static struct pieces handshakes;
static uint32_t first_handshake;

static void shake_hands(uint32_t index)
{
    struct websocket *websocket = &websockets[index];
    char *line = strdup(handshakes.all[index - first_handshake].bytes), *rest = line, *request;
    check_connected(websocket->stream.fd);
    int size = asprintf(&request,
                        "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
                        strsep(&rest, "\t"));
    send_all(&websocket->stream, request, (size_t)size);
    for (char *header; (header = strsep(&rest, "\t"));) {
        send_all(&websocket->stream, header, strlen(header));
        send_all(&websocket->stream, "\r\n", 2);
    }
    send_all(&websocket->stream, "\r\n", 2);
    websocket->state = SHAKING_HANDS;
    free(request);
    free(line);
}

static void connect_next(uint16_t port)
{
    uint32_t index = websocket_count++;
    int fd = begin_connection(port);
    websockets[index] = (struct websocket){.stream.fd = fd, .state = CONNECTING};
    watch(fd, WEBSOCKET, index);
}

static void command_connect(uint16_t port, const char *file, uint32_t window)
{
    handshakes = read_lines(file);
    first_handshake = websocket_count;
    uint32_t wanted = first_handshake + handshakes.count;
    websockets = resized(websockets, wanted, sizeof *websockets);
    uint64_t started = now_us();
    struct patience patience = patience_from_now();
    while (open_count < wanted) {
        while (websocket_count < wanted && websocket_count - open_count < window)
            connect_next(port);
        serve(1000);
        if (exhausted(&patience, open_count))
            fail("%u handshakes were not answered", websocket_count - open_count);
    }
    printf("{\"connected\":%u,\"seconds\":%.6f,\"packets\":%" PRIu64 "}\n", handshakes.count,
           (double)(now_us() - started) / SECOND_US, packets);
    free_pieces(&handshakes);
}

/* --- settle */

/* Pings do not count: with thousands of connections there is always one. */
static void command_settle(double seconds)
{
    uint64_t silence = (uint64_t)(seconds * SECOND_US), seen = texts, since = now_us(), now = since;
    while (now - since < silence) {
        serve((int)((silence - (now - since)) / 1000) + 1);
        now = now_us();
        if (texts != seen)
            seen = texts, since = now;
    }
    printf("{\"packets\":%" PRIu64 ",\"bytes\":%" PRIu64 "}\n", packets, bytes_received);
}

/* --- Figures */

struct latencies {
    uint32_t *us;
    size_t count;
};

static int ascending(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static uint32_t percentile(const struct latencies *latencies, unsigned percent)
{
    return latencies->count ? latencies->us[(latencies->count - 1) * percent / 100] : 0;
}

/* The figures that every answer ends with; sorts and frees. */
static void print_figures(struct latencies *latencies, uint64_t took_us, uint64_t cpu_us)
{
    qsort(latencies->us, latencies->count, sizeof *latencies->us, ascending);
    printf("\"seconds\":%.6f,\"p50_us\":%u,\"p99_us\":%u,\"own_cpu_us\":%.3f}\n", (double)took_us / SECOND_US,
           percentile(latencies, 50), percentile(latencies, 99),
           latencies->count ? (double)cpu_us / (double)latencies->count : 0);
    free(latencies->us);
}

/* --- publish */

/* Gives every version 16 digits, whatever the time since the machine was started. */
#define VERSION_BASE UINT64_C(1000000000000000)
#define VERSION_DIGITS 16

/* Stop filling the buffer to Redis when it has this much: a paced publisher falls behind rather than eat memory. */
#define MOST_UNSENT (4 * 1024 * 1024)

/* Message n belongs to connection order[n % websocket_count], so that connection's next one is n + websocket_count. */
static struct {
    const char *prefix;
    bool framed, paced;
    uint64_t rate, outstanding;
    char *tail;
    size_t tail_size;
    uint32_t *order;
    uint64_t *versions; /* of message n */
    uint64_t count, published, confirmed, delivered, lost, stale;
    uint64_t started, last_delivery;
    struct latencies latencies;
} run;

static uint64_t last_version;

static char *put(char *at, const char *bytes, size_t size) { return (char *)memcpy(at, bytes, size) + size; }

static char *put_text(char *at, const char *text) { return put(at, text, strlen(text)); }

/* printf would be the dearest part of a message. */
static char *put_number(char *at, uint64_t number)
{
    char digits[20];
    size_t start = sizeof digits;
    do
        digits[--start] = (char)('0' + number % 10);
    while (number /= 10);
    return put(at, digits + start, sizeof digits - start);
}

static char *put_big_endian(char *at, uint64_t number)
{
    number = htobe64(number);
    return put(at, (const char *)&number, sizeof number);
}

/* What every message ends with, `size` bytes: as many videos as fit, the first with a sender whose id fills it up. */
static void make_tail(size_t size)
{
    static const char video[] = "{\"video_id\":\"01J8ZQ4T9V6W3X%06zu\",\"sender_id\":\"sender%.*s\",\"status\":"
                                "\"notified\",\"url\":\"/v1/videos/01J8ZQ4T9V6W3X%06zu/content\",\"size\":4194304,"
                                "\"content_type\":\"video/mp4\",\"at\":1760000000000},";
    static const char begin[] = "\"outgoing\":[],\"incoming\":[", end[] = "]}";
    size_t each = (size_t)snprintf(NULL, 0, video, (size_t)0, 0, "", (size_t)0);
    size_t fixed = strlen(begin) + strlen(end), videos = size > fixed ? (size - fixed) / each : 0;
    size_t filling = videos ? size - fixed - videos * each : 0;
    char *filler = memset(resized(NULL, filling + 1, 1), 'x', filling);
    run.tail = resized(NULL, fixed + videos * each + filling + 1, 1);
    char *at = put_text(run.tail, begin);
    for (size_t n = 0; n < videos; n++)
        at += sprintf(at, video, n, n ? 0 : (int)filling, filler, n);
    at = put_text(at - !!videos, end); /* over the last comma */
    run.tail_size = (size_t)(at - run.tail);
    free(filler);
}

/* A fixed seed: every run and every server gets the same order. */
static uint32_t *shuffled(uint32_t count)
{
    uint32_t *order = resized(NULL, count, sizeof *order);
    uint64_t random = UINT64_C(0x9e3779b97f4a7c15);
    for (uint32_t n = 0; n < count; n++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        uint32_t place = (uint32_t)(random % (n + 1));
        order[n] = order[place];
        order[place] = n;
    }
    return order;
}

/* The time, but later than the connection's last: that is what makes it a version. */
static uint64_t next_version(void)
{
    uint64_t version = VERSION_BASE + now_us();
    uint64_t before =
        run.published >= websocket_count ? run.versions[run.published - websocket_count] : last_version;
    return version > before ? version : before + 1;
}

static const char message_start[] = "{\"type\":\"info\",\"client_id\":\"c";
static const char message_middle[] = "\",\"version\":";

/* The size of what stands before the tail. */
static size_t head_size(size_t connection_digits)
{
    return strlen(message_start) + connection_digits + strlen(message_middle) + VERSION_DIGITS + 1;
}

static char *put_message(char *at, uint32_t connection, uint64_t version)
{
    if (run.framed) {
        at = put_big_endian(at, version);
        *at++ = 0;
    }
    at = put_text(at, message_start);
    at = put_number(at, connection);
    at = put_text(at, message_middle);
    at = put_number(at, version);
    at = put_text(at, ",");
    return put(at, run.tail, run.tail_size);
}

static size_t digits(uint64_t number)
{
    char text[20];
    return (size_t)(put_number(text, number) - text);
}

static char *put_bulk_head(char *at, size_t size)
{
    at = put_text(at, "\r\n$");
    at = put_number(at, size);
    return put_text(at, "\r\n");
}

/* Appends a PUBLISH to what goes to Redis. */
static void publish_next(void)
{
    uint32_t connection = run.order[run.published % websocket_count];
    uint64_t version = run.versions[run.published] = next_version();
    size_t number = digits(connection), channel = strlen(run.prefix);
    size_t message = (run.framed ? 9 : 0) + head_size(number) + run.tail_size;
    char *start = room_for(&redis.unsent, 128 + channel + message), *at = start;
    at = put_text(at, "*3\r\n$7\r\nPUBLISH");
    at = put_bulk_head(at, channel + number);
    at = put(at, run.prefix, channel);
    at = put_number(at, connection);
    at = put_bulk_head(at, message);
    at = put_message(at, connection, version);
    at = put_text(at, "\r\n");
    redis.unsent->end += (size_t)(at - start);
    run.published++;
}

/* How many messages should have been published by now. */
static uint64_t due(void)
{
    uint64_t due = run.paced ? (now_us() - run.started) * run.rate / SECOND_US
                             : run.delivered + run.lost + run.outstanding;
    return due < run.count ? due : run.count;
}

/* A closed loop is filled up an eighth at a time, as by a publisher that pipelines: one by one would measure how often
 * Redis is woken. */
static bool worth_publishing(uint64_t until)
{
    return run.paced || until == run.count || until - run.published >= run.outstanding / 8;
}

static void publish_due(void)
{
    uint64_t until = due();
    if (!worth_publishing(until))
        return;
    while (run.published < until && buffered(redis.unsent) < MOST_UNSENT)
        publish_next();
    flush(&redis);
}

/* One line of Redis for each PUBLISH, in order. */
static void take_reply(const char *line, size_t size)
{
    uint32_t connection = run.order[run.confirmed % websocket_count];
    if (line[0] != ':')
        fail("Redis answered %.*s", (int)size, line);
    if (line[1] == '0')
        fail("nobody had subscribed to %s%u", run.prefix, connection);
    run.confirmed++;
}

static size_t take_from_redis(uint32_t index, const char *bytes, size_t size)
{
    size_t used = 0;
    (void)index;
    for (const char *end; (end = memchr(bytes + used, '\n', size - used)); used = (size_t)(end + 1 - bytes))
        take_reply(bytes + used, (size_t)(end - bytes) - used);
    return used;
}

static uint64_t read_number(const char **at, const char *end)
{
    uint64_t number = 0;
    for (; *at < end && **at >= '0' && **at <= '9'; ++*at)
        number = number * 10 + (uint64_t)(**at - '0');
    return number;
}

/* The version of a message; fails if the message is not one that this connection should get. */
static uint64_t read_version(uint32_t index, const char *text, size_t size)
{
    const char *at = text + strlen(message_start), *end = text + size;
    if (begins(text, size, message_start) && read_number(&at, end) == index &&
        begins(at, (size_t)(end - at), message_middle)) {
        at += strlen(message_middle);
        uint64_t version = read_number(&at, end);
        if (version >= VERSION_BASE)
            return version;
    }
    fail("connection %u got what was not published to it: %.*s", index, (int)(size < 200 ? size : 200), text);
}

static void count_delivery(struct websocket *websocket, uint64_t version)
{
    uint64_t now = run.last_delivery = now_us(), took = VERSION_BASE + now;
    /* Versions run ahead of the clock when one connection gets several in a microsecond. */
    run.latencies.us[run.latencies.count++] = took > version ? (uint32_t)(took - version) : 0;
    run.delivered++;
    websocket->expected += websocket_count;
}

static bool is_next(const struct websocket *websocket, uint64_t version)
{
    return websocket->expected < run.published && run.versions[websocket->expected] == version;
}

/* Not the next one. Whatever lies between was lost; unless it is this one that comes too late, or again. */
static void take_out_of_order(struct websocket *websocket, uint64_t version)
{
    while (websocket->expected < run.published && run.versions[websocket->expected] < version) {
        run.lost++;
        websocket->expected += websocket_count;
    }
    if (is_next(websocket, version))
        count_delivery(websocket, version);
    else
        run.stale++;
}

static void take_published(uint32_t index, const char *text, size_t size)
{
    struct websocket *websocket = &websockets[index];
    uint64_t version = read_version(index, text, size);
    if (is_next(websocket, version))
        count_delivery(websocket, version);
    else if (run.paced)
        take_out_of_order(websocket, version);
    else /* with so few under way no server has a reason to leave one out */
        fail("connection %u got version %" PRIu64 " out of order", index, version);
}

/* A tick for every message, but none shorter than 100 µs: what is due by then goes together. */
static void start_ticking(uint64_t rate)
{
    int64_t tick_ns = rate < 10000 ? (int64_t)(1000 * SECOND_US / rate) : 100000;
    struct timespec tick = {tick_ns / 1000000000, tick_ns % 1000000000};
    ticks = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (ticks < 0 || timerfd_settime(ticks, 0, &(struct itimerspec){tick, tick}, NULL))
        fail("timerfd: %s", strerror(errno));
    watch(ticks, TICK, 0);
}

static void stop_ticking(void)
{
    if (ticks >= 0)
        close(ticks);
    ticks = -1;
}

static bool all_delivered(void)
{
    return run.confirmed == run.count && run.delivered + run.lost == run.count;
}

static void publish_all(void)
{
    if (run.paced)
        start_ticking(run.rate);
    struct patience patience = patience_from_now();
    run.started = run.last_delivery = now_us();
    on_text = take_published;
    while (!all_delivered() && !exhausted(&patience, run.confirmed + run.delivered + run.stale)) {
        publish_due();
        if (run.published == run.count)
            stop_ticking();
        serve(1000);
    }
    on_text = NULL;
    stop_ticking();
}

static void prepare_to_publish(uint64_t count, size_t size)
{
    run.count = count;
    run.order = shuffled(websocket_count);
    /* Written once before the clock starts: page faults would count as the load's CPU. */
    run.versions = zeroed(count, sizeof *run.versions);
    run.latencies = (struct latencies){zeroed(count, sizeof(uint32_t)), 0};
    for (uint32_t n = 0; n < websocket_count; n++)
        websockets[run.order[n]].expected = n;
    size_t head = head_size(digits(websocket_count - 1));
    make_tail(size > head ? size - head : 0);
}

static void finish_publishing(void)
{
    if (run.published)
        last_version = run.versions[run.published - 1];
    close(redis.fd);
    release(&redis.unread);
    release(&redis.unsent);
    free(run.order);
    free(run.versions);
    free(run.tail);
}

static void command_publish(uint16_t port, const char *prefix, bool framed, uint64_t count, uint64_t outstanding,
                            uint64_t rate, size_t size)
{
    if (!websocket_count)
        fail("publish: nothing is connected");
    memset(&run, 0, sizeof run);
    run.prefix = prefix, run.framed = framed, run.outstanding = outstanding, run.rate = rate, run.paced = rate > 0;
    prepare_to_publish(count, size);
    redis = (struct stream){.fd = open_connection(port)};
    watch(redis.fd, REDIS, 0);
    uint64_t cpu = own_cpu_us();
    publish_all();
    cpu = own_cpu_us() - cpu;
    printf("{\"published\":%" PRIu64 ",\"delivered\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"stale\":%" PRIu64 ",",
           run.published, run.delivered, run.published - run.delivered, run.stale);
    print_figures(&run.latencies, run.last_delivery - run.started, cpu);
    finish_publishing();
}

/* --- frames and requests: what they have in common */

static struct {
    struct pieces pieces;
    uint32_t sent, answered;
    uint64_t packets_wanted;
    struct latencies latencies;
} work;

static void begin_work(struct pieces pieces, uint64_t packets_wanted)
{
    work.pieces = pieces;
    work.sent = work.answered = 0;
    work.packets_wanted = packets_wanted;
    work.latencies = (struct latencies){zeroed(pieces.count, sizeof(uint32_t)), 0};
    packets = 0;
}

static void count_answer(uint64_t sent_at)
{
    work.latencies.us[work.latencies.count++] = (uint32_t)(now_us() - sent_at);
    work.answered++;
}

static uint32_t unanswered(void) { return work.sent - work.answered; }

/* Calls `send_more` and serves, until all is answered and every packet has come. */
static void do_work(void (*send_more)(void))
{
    uint64_t started = now_us(), cpu = own_cpu_us();
    struct patience patience = patience_from_now();
    while (!exhausted(&patience, work.answered + packets) &&
           (work.answered < work.pieces.count || packets < work.packets_wanted)) {
        send_more();
        serve(1000);
    }
    cpu = own_cpu_us() - cpu;
    printf("{\"answered\":%u,\"packets\":%" PRIu64 ",\"unanswered\":%u,\"missing\":%" PRIu64 ",", work.answered,
           packets, work.pieces.count - work.answered,
           packets < work.packets_wanted ? work.packets_wanted - packets : 0);
    print_figures(&work.latencies, patience.since - started, cpu);
    free_pieces(&work.pieces);
}

/* --- frames */

/* Connections that have a text to send and none unanswered, in a ring; each is in it at most once. */
static struct {
    uint32_t *first_piece; /* of each connection, that is not answered yet */
    uint32_t *ring;
    uint64_t in, out;
    uint32_t window;
} queue;

static void enqueue(uint32_t connection) { queue.ring[queue.in++ % websocket_count] = connection; }

/* The text that a line has after its connection's number and a tab. */
static void split_line(struct piece *line)
{
    const char *at = line->bytes, *end = at + line->size;
    uint64_t connection = read_number(&at, end);
    if (at == line->bytes || at == end || *at != '\t' || connection >= websocket_count)
        fail("frames: this line is not for any connection: %.100s", line->bytes);
    *line = (struct piece){at + 1, (size_t)(end - at) - 1, (uint32_t)connection, NO_PIECE};
}

/* Links every connection's lines, and queues the connections as they first appear. */
static void queue_lines(struct pieces *lines)
{
    uint32_t *last = resized(NULL, websocket_count, sizeof *last);
    memset(last, 0xff, websocket_count * sizeof *last);
    for (uint32_t n = 0; n < lines->count; n++) {
        split_line(&lines->all[n]);
        uint32_t connection = lines->all[n].connection;
        if (last[connection] == NO_PIECE) {
            queue.first_piece[connection] = n;
            enqueue(connection);
        } else {
            lines->all[last[connection]].next = n;
        }
        last[connection] = n;
    }
    free(last);
}

static void send_texts(void)
{
    while (queue.out < queue.in && unanswered() < queue.window) {
        uint32_t connection = queue.ring[queue.out++ % websocket_count];
        struct piece *text = &work.pieces.all[queue.first_piece[connection]];
        websockets[connection].sent_at = now_us();
        send_frame(&websockets[connection].stream, 1, text->bytes, text->size);
        work.sent++;
    }
}

static void take_result(uint32_t index, const char *text, size_t size)
{
    if (begins(text, size, "{\"type\":\"error\""))
        fail("connection %u: %.*s", index, (int)(size < 800 ? size : 800), text);
    if (!begins(text, size, "{\"type\":\"result\""))
        return;
    if (!websockets[index].sent_at)
        fail("connection %u: a result that nothing was sent for: %.*s", index, (int)(size < 200 ? size : 200), text);
    count_answer(websockets[index].sent_at);
    websockets[index].sent_at = 0;
    queue.first_piece[index] = work.pieces.all[queue.first_piece[index]].next;
    if (queue.first_piece[index] != NO_PIECE)
        enqueue(index);
}

static void command_frames(const char *file, uint32_t window, uint64_t packets_wanted)
{
    struct pieces lines = read_lines(file);
    queue.first_piece = resized(NULL, websocket_count, sizeof *queue.first_piece);
    queue.ring = resized(NULL, websocket_count, sizeof *queue.ring);
    queue.in = queue.out = 0;
    queue.window = window;
    queue_lines(&lines);
    begin_work(lines, packets_wanted);
    on_text = take_result;
    do_work(send_texts);
    on_text = NULL;
    free(queue.first_piece);
    free(queue.ring);
}

/* --- requests */

struct requester {
    struct stream stream;
    uint64_t sent_at; /* 0 when it has nothing unanswered */
};

static struct requester *requesters;
static uint32_t requester_count;

static struct stream *requester_stream(uint32_t index) { return &requesters[index].stream; }

static struct pieces read_requests(const char *name)
{
    size_t size;
    struct pieces requests = {.content = read_file(name, &size)};
    const char *at = requests.content, *end = at + size;
    while (at < end) {
        const char *number = at;
        uint64_t length = read_number(&at, end);
        if (at == number || at == end || *at++ != '\n' || length > (size_t)(end - at))
            fail("%s: no length, or fewer bytes than it says, at byte %td", name, number - requests.content);
        add_piece(&requests, at, length);
        at += length;
    }
    return requests;
}

static void send_request(struct requester *requester)
{
    if (work.sent == work.pieces.count)
        return;
    const struct piece *request = &work.pieces.all[work.sent++];
    requester->sent_at = now_us();
    send_all(&requester->stream, request->bytes, request->size);
}

static void send_requests(void)
{
    for (uint32_t n = 0; n < requester_count && work.sent < work.pieces.count; n++)
        if (!requesters[n].sent_at)
            send_request(&requesters[n]);
}

/* The size of the body that a head announces; fails if it is announced otherwise. */
static size_t body_size(const char *head, size_t size)
{
    static const char name[] = "\ncontent-length:";
    for (const char *line = head; (line = memchr(line, '\n', (size_t)(head + size - line))); line++)
        if ((size_t)(head + size - line) > strlen(name) && !strncasecmp(line, name, strlen(name)))
            return strtoul(line + strlen(name), NULL, 10);
    fail("an answer without Content-Length: %.*s", (int)size, head);
}

static size_t take_from_requester(uint32_t index, const char *bytes, size_t size)
{
    struct requester *requester = &requesters[index];
    const char *end = memmem(bytes, size, "\r\n\r\n", 4);
    if (!end)
        return 0;
    if (!begins(bytes, size, "HTTP/1.1 200 "))
        fail("request answered %.*s", (int)(size < 800 ? size : 800), bytes);
    size_t head = (size_t)(end - bytes) + 4, whole = head + body_size(bytes, head);
    if (size < whole)
        return 0;
    if (!requester->sent_at)
        fail("HTTP connection %u: an answer to nothing", index);
    count_answer(requester->sent_at);
    requester->sent_at = 0;
    return whole;
}

static void open_requesters(uint16_t port, uint32_t count)
{
    requesters = zeroed(count, sizeof *requesters);
    requester_count = count;
    for (uint32_t n = 0; n < count; n++) {
        requesters[n].stream.fd = open_connection(port);
        watch(requesters[n].stream.fd, REQUESTER, n);
    }
}

static void close_requesters(void)
{
    for (uint32_t n = 0; n < requester_count; n++) {
        close(requesters[n].stream.fd);
        release(&requesters[n].stream.unread);
        release(&requesters[n].stream.unsent);
    }
    free(requesters);
    requester_count = 0;
}

static void command_requests(uint16_t port, const char *file, uint32_t count, uint64_t packets_wanted)
{
    open_requesters(port, count);
    begin_work(read_requests(file), packets_wanted);
    do_work(send_requests);
    close_requesters();
}

/* --- Commands */

#define MOST_WORDS 8

static uint64_t number(const char *word)
{
    char *end;
    uint64_t value = strtoull(word, &end, 10);
    if (!*word || *end)
        fail("not a number: %s", word);
    return value;
}

static bool is_framed(const char *format)
{
    if (strcmp(format, "raw") && strcmp(format, "framed"))
        fail("neither raw nor framed: %s", format);
    return !strcmp(format, "framed");
}

static bool is(char **words, size_t count, const char *command, size_t wanted)
{
    if (strcmp(words[0], command))
        return false;
    if (count != wanted + 1)
        fail("%s takes %zu words", command, wanted);
    return true;
}

static void execute(char **w, size_t count)
{
    if (is(w, count, "connect", 3))
        command_connect((uint16_t)number(w[1]), w[2], (uint32_t)number(w[3]));
    else if (is(w, count, "settle", 1))
        command_settle(strtod(w[1], NULL));
    else if (is(w, count, "publish", 7))
        command_publish((uint16_t)number(w[1]), w[2], is_framed(w[3]), number(w[4]), number(w[5]), number(w[6]),
                        number(w[7]));
    else if (is(w, count, "frames", 3))
        command_frames(w[1], (uint32_t)number(w[2]), number(w[3]));
    else if (is(w, count, "requests", 4))
        command_requests((uint16_t)number(w[1]), w[2], (uint32_t)number(w[3]), number(w[4]));
    else if (is(w, count, "quit", 0))
        exit(0);
    else
        fail("no such command: %s", w[0]);
}

static void execute_line(char *line)
{
    char *words[MOST_WORDS + 1];
    size_t count = 0;
    for (char *word; count <= MOST_WORDS && (word = strsep(&line, " "));)
        if (*word)
            words[count++] = word;
    if (!count)
        return;
    execute(words, count);
    fflush(stdout);
    packets = bytes_received = 0;
}

/* Executes the whole lines in `commands`, and answers how much is left. */
static size_t execute_lines(char *commands, size_t size)
{
    for (char *end; (end = memchr(commands, '\n', size));) {
        *end++ = 0;
        execute_line(commands);
        size -= (size_t)(end - commands);
        memmove(commands, end, size);
    }
    return size;
}

/* An epoll is readable when one of its sockets is, so commands and sockets are waited for together. */
static void wait_for_command(void)
{
    struct pollfd either[] = {{STDIN_FILENO, POLLIN, 0}, {epoll_fd, POLLIN, 0}};
    while (!either[0].revents) {
        poll(either, 2, -1);
        if (either[1].revents)
            serve(0);
    }
}

static void allow_many_sockets(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

int main(void)
{
    static char commands[4096];
    size_t size = 0;
    allow_many_sockets();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (ssize_t got; wait_for_command(), (got = read(STDIN_FILENO, commands + size, sizeof commands - size)) > 0;)
        size = execute_lines(commands, size + (size_t)got);
    return 0;
}
