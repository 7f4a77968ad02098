/* The load of the benchmark: WebSocket clients, publishers and HTTP clients in one thread over epoll.
 *
 * It reads one command a line on stdin and answers each with one line of JSON on stdout, so whoever drives it can read
 * the server's CPU in between. Pings are answered at all times. What goes wrong is answered with {"error":"..."} and
 * ends the program: a run in which anything unexpected happened gives no figures.
 *
 *   from ADDRESS
 *       WebSockets that are opened from now on come from this address of the loopback, such as 127.0.0.2. {}
 *   connect PORT FILE WINDOW PROTOCOL
 *       One connection to a line of FILE, WINDOW handshakes at a time. A line is the request's target, then whole
 *       header lines, with tabs between. Connections are numbered from 0, through all connects. PROTOCOL is what is
 *       spoken over the WebSocket:
 *         raw         a text is a message
 *         socketio    socket.io in engine.io: 40 asks for the namespace, 2 is answered 3. Ready when that is joined
 *         centrifugo  the line's last word is the first text that is sent; {} is answered {}. Ready when it is answered
 *       {"connected":N,"seconds":S,"packets":P}
 *   settle SECONDS
 *       Waits until no message has come for SECONDS. Counts what has come since the command before.
 *       {"packets":P,"bytes":B}
 *   publish TRANSPORT PORT FILE COUNT OUTSTANDING RATE
 *       Publishes COUNT messages and waits for each on its connection. RATE 0: OUTSTANDING at a time. Otherwise RATE a
 *       second, come what may. FILE holds pieces, each after its length in decimal and a newline: first what is sent when
 *       a publisher has connected, then what publishes a message to each connection, in order. In those stands for the
 *       version, which is made when it is sent, ################ as sixteen digits, or eight bytes 0xff as a big-endian
 *       number; both may be there, or either, but once. The text that comes must hold
 *       "client_id":"c<connection>","version":<version>. TRANSPORT:
 *         redis  PUBLISH, over one connection
 *         http   requests, each answered with a 2xx, over 32 connections kept alive; those of one are pipelined
 *         zmtp   messages of ZeroMQ, which are not answered, over one connection. Of what is sent first, 64 bytes are
 *                the greeting; the rest follows when that is answered
 *       {"published":N,"delivered":N,"lost":N,"stale":N,"seconds":S,"p50_us":U,"p99_us":U,"own_cpu_us":U}
 *   frames FILE WINDOW PACKETS RATE
 *       Sends the texts of FILE, whose lines are a connection's number, a tab and a text. One to a connection, whose
 *       lines keep their order. {"type":"result" answers one. RATE 0: WINDOW unanswered at a time. Otherwise RATE a
 *       second, and all times are from when a text was due. Ends with the last answer when PACKETS info packets have
 *       come, too, on whatever connection.
 *       {"answered":N,"packets":P,"unanswered":0,"missing":0,"seconds":S,"p50_us":U,"p99_us":U,
 *       "packets_p50_us":U,"packets_p99_us":U,"own_cpu_us":U}
 *       The packets' times end when both of a pair have theirs: the connections 2n and 2n+1 are one.
 *   requests PORT FILE CONNECTIONS PACKETS RATE
 *       The same with HTTP/1.1. FILE holds whole requests, each after its length in decimal, a space, the number of a
 *       connection of the pair whose packets follow from it, and a newline. They are sent over CONNECTIONS kept alive,
 *       one at a time on each. Every answer has to be a 200.
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

enum kind { WEBSOCKET, REQUESTER, PUBLISHER, TICK };

static int epoll_fd;

/* What has come over WebSockets since the last answer; texts are counted from the start. */
static uint64_t packets, bytes_received, texts;

static const char *kind_name(enum kind kind)
{
    return kind == WEBSOCKET ? "connection" : kind == REQUESTER ? "HTTP connection" : "publisher";
}

/* Edge-triggered and for both directions, once and for all: no epoll_ctl later, and no second look by epoll_wait at
 * sockets that were drained. */
static void watch(int fd, enum kind kind, uint32_t index)
{
    struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {.u64 = (uint64_t)kind << 32 | index}};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
        fail("epoll_ctl: %s", strerror(errno));
}

/* Where WebSockets come from: one address has no more ports than some 28,000. */
static struct in_addr source = {.s_addr = INADDR_ANY};

static void bind_to(int fd, struct in_addr from)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = from};
    if (from.s_addr == INADDR_ANY)
        return;
    /* The port is chosen by connect, which may use it again for another destination. */
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
    if (bind(fd, (struct sockaddr *)&address, sizeof address))
        fail("bind: %s", strerror(errno));
}

/* A socket whose connection to `port` is under way. */
static int begin_connection(uint16_t port, struct in_addr from)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    bind_to(fd, from);
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
    int fd = begin_connection(port, (struct in_addr){INADDR_ANY});
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

enum state { CONNECTING, SHAKING_HANDS, JOINING, OPEN };

enum protocol { RAW, SOCKETIO, CENTRIFUGO };

struct websocket {
    struct stream stream;
    uint64_t sent_at;  /* when its frame was sent, or due, that is not answered yet */
    uint32_t expected; /* the number of the message that it gets next */
    enum state state;
    enum protocol protocol;
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

static void count_packet(uint32_t index);

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

static void take_message(uint32_t index, const char *text, size_t size)
{
    texts++;
    if (begins(text, size, "{\"type\":\"info\"")) {
        packets++;
        count_packet(index);
    }
    if (on_text)
        on_text(index, text, size);
}

static bool equals(const char *text, size_t size, const char *other)
{
    return size == strlen(other) && !memcmp(text, other, size);
}

static void opened(uint32_t index)
{
    websockets[index].state = OPEN;
    open_count++;
}

static void send_text(uint32_t index, const char *text)
{
    send_frame(&websockets[index].stream, 1, text, strlen(text));
}

/* 0{...} is engine.io's greeting, 2 its ping, and 40{...} says that the namespace is joined. */
static void take_socketio(uint32_t index, const char *text, size_t size)
{
    static const char event[] = "42[\"info\",";
    if (equals(text, size, "2"))
        send_text(index, "3");
    else if (websockets[index].state == OPEN && begins(text, size, event))
        take_message(index, text + strlen(event), size - strlen(event) - 1);
    else if (websockets[index].state == JOINING && begins(text, size, "0{"))
        send_text(index, "40");
    else if (websockets[index].state == JOINING && begins(text, size, "40{"))
        opened(index);
    else
        fail("connection %u: socket.io said %.*s", index, (int)(size < 200 ? size : 200), text);
}

/* Several messages may stand in one text, a line for each. */
static void take_centrifugo(uint32_t index, const char *text, size_t size)
{
    static const char data[] = "\"data\":";
    const char *end = memchr(text, '\n', size), *at;
    size_t line = end ? (size_t)(end - text) : size;
    if (equals(text, line, "{}"))
        send_text(index, "{}");
    else if (websockets[index].state == JOINING && begins(text, line, "{\"id\":1,\"connect\":"))
        opened(index);
    else if (begins(text, line, "{\"push\":") && (at = memmem(text, line, data, strlen(data))))
        take_message(index, at + strlen(data), line - (size_t)(at + strlen(data) - text));
    else
        fail("connection %u: Centrifugo said %.*s", index, (int)(line < 200 ? line : 200), text);
    if (end)
        take_centrifugo(index, end + 1, size - line - 1);
}

static void take_text(uint32_t index, const char *text, size_t size)
{
    switch (websockets[index].protocol) {
    case RAW:
        take_message(index, text, size);
        break;
    case SOCKETIO:
        take_socketio(index, text, size);
        break;
    case CENTRIFUGO:
        take_centrifugo(index, text, size);
        break;
    }
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

static void shaken_hands(uint32_t index);

static size_t take_handshake(uint32_t index, const char *bytes, size_t size)
{
    const char *end = memmem(bytes, size, "\r\n\r\n", 4);
    if (!end)
        return 0;
    if (!begins(bytes, size, "HTTP/1.1 101 "))
        fail("connection %u: the handshake was answered %.*s", index, (int)(size < 500 ? size : 500), bytes);
    shaken_hands(index);
    return (size_t)(end - bytes) + 4;
}

static size_t take_from_websocket(uint32_t index, const char *bytes, size_t size)
{
    size_t used = websockets[index].state >= JOINING ? 0 : take_handshake(index, bytes, size);
    if (websockets[index].state >= JOINING)
        used += take_frames(index, bytes + used, size - used);
    return used;
}

/* --- The loop */

static struct stream *publishers;
static int ticks = -1; /* the timer of whoever is paced */
static void shake_hands(uint32_t index);
static take_function take_from_requester, take_from_publisher;
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
    case PUBLISHER: /* its buffer is used again and again: it is not released */
        flush(&publishers[index]);
        receive(&publishers[index], PUBLISHER, index, take_from_publisher, event->events);
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

static uint64_t read_number(const char **at, const char *end)
{
    uint64_t number = 0;
    for (; *at < end && **at >= '0' && **at <= '9'; ++*at)
        number = number * 10 + (uint64_t)(**at - '0');
    return number;
}

/* Pieces that stand after their length in decimal; `numbered`: then a space and a connection's number; and a newline. */
static struct pieces read_pieces(const char *name, bool numbered)
{
    size_t size;
    struct pieces pieces = {.content = read_file(name, &size)};
    const char *at = pieces.content, *end = at + size;
    while (at < end) {
        const char *start = at;
        uint64_t length = read_number(&at, end), connection = 0;
        if (numbered && at < end && *at == ' ')
            at++, connection = read_number(&at, end);
        if (at == start || at == end || *at++ != '\n' || length > (size_t)(end - at))
            fail("%s: no length, or fewer bytes than it says, at byte %td", name, start - pieces.content);
        add_piece(&pieces, at, length);
        pieces.all[pieces.count - 1].connection = (uint32_t)connection;
        at += length;
    }
    return pieces;
}

/* --- connect */

static struct pieces handshakes;
static uint32_t first_handshake;
static enum protocol protocol_spoken;

/* The last word of its line. */
static const char *first_text(uint32_t index)
{
    const char *line = handshakes.all[index - first_handshake].bytes, *tab = strrchr(line, '\t');
    return tab ? tab + 1 : line;
}

static void shaken_hands(uint32_t index)
{
    struct websocket *websocket = &websockets[index];
    websocket->state = JOINING;
    if (websocket->protocol == RAW)
        opened(index);
    else if (websocket->protocol == CENTRIFUGO)
        send_text(index, first_text(index));
}

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
        if (websocket->protocol == CENTRIFUGO && !rest)
            break; /* the last is for later */
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
    int fd = begin_connection(port, source);
    websockets[index] = (struct websocket){.stream.fd = fd, .state = CONNECTING, .protocol = protocol_spoken};
    watch(fd, WEBSOCKET, index);
}

static void command_connect(uint16_t port, const char *file, uint32_t window, enum protocol protocol)
{
    handshakes = read_lines(file);
    protocol_spoken = protocol;
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

static void command_from(const char *address)
{
    if (!inet_aton(address, &source) || ntohl(source.s_addr) >> 24 != IN_LOOPBACKNET)
        fail("not an address of the loopback: %s", address);
    printf("{}\n");
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

/* --- pacing */

/* A tick for everything that is due, but none shorter than 100 µs: what is due by then goes together. */
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

/* --- publish */

/* Gives every version 16 digits, whatever the time since the machine was started. */
#define VERSION_BASE UINT64_C(1000000000000000)
#define VERSION_DIGITS 16

static const char version_as_text[] = "################", version_as_number[] = "\xff\xff\xff\xff\xff\xff\xff\xff";

/* Stop filling the buffer of a publisher when it has this much: a paced one falls behind rather than eat memory. */
#define MOST_UNSENT (4 * 1024 * 1024)

#define HTTP_PUBLISHERS 32

#define ZMTP_GREETING 64

enum transport { BY_REDIS, BY_HTTP, BY_ZMTP };

/* What publishes to a connection, and where the version stands in it: 0 is nowhere. */
struct letter {
    const char *bytes;
    uint32_t size, as_text, as_number;
};

/* Message n belongs to connection order[n % websocket_count], so that connection's next one is n + websocket_count. */
static struct {
    enum transport transport;
    struct pieces pieces;
    struct letter *letters; /* of each connection */
    bool paced;
    uint64_t rate, outstanding;
    uint32_t publisher_count;
    uint32_t *order;
    uint64_t *versions; /* of message n */
    uint64_t count, published, confirmed, delivered, lost, stale;
    uint64_t started, last_delivery;
    struct latencies latencies;
} run;

static uint64_t last_version;

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

static uint32_t place_of(const struct piece *piece, const char *wanted)
{
    const char *found = memmem(piece->bytes, piece->size, wanted, strlen(wanted));
    return found ? (uint32_t)(found - piece->bytes) : 0;
}

static void read_letters(const char *file)
{
    run.pieces = read_pieces(file, false);
    if (run.pieces.count != websocket_count + 1)
        fail("publish: %u pieces for %u connections and a publisher", run.pieces.count, websocket_count);
    run.letters = resized(NULL, websocket_count, sizeof *run.letters);
    for (uint32_t n = 0; n < websocket_count; n++) {
        const struct piece *piece = &run.pieces.all[n + 1];
        run.letters[n] = (struct letter){piece->bytes, (uint32_t)piece->size, place_of(piece, version_as_text),
                                         place_of(piece, version_as_number)};
        if (!run.letters[n].as_text && !run.letters[n].as_number)
            fail("publish: no place for the version in the piece for connection %u", n);
    }
}

/* The time, but later than the connection's last: that is what makes it a version. */
static uint64_t next_version(void)
{
    uint64_t version = VERSION_BASE + now_us();
    uint64_t before =
        run.published >= websocket_count ? run.versions[run.published - websocket_count] : last_version;
    return version > before ? version : before + 1;
}

/* printf would be the dearest part of a message. */
static void put_digits(char *at, uint64_t version)
{
    for (size_t n = VERSION_DIGITS; n--; version /= 10)
        at[n] = (char)('0' + version % 10);
}

/* Appends a message to what goes out. Those to one connection go through one publisher: they keep their order. */
static void publish_next(void)
{
    uint32_t connection = run.order[run.published % websocket_count];
    struct stream *publisher = &publishers[connection % run.publisher_count];
    const struct letter *letter = &run.letters[connection];
    uint64_t version = run.versions[run.published] = next_version();
    char *at = memcpy(room_for(&publisher->unsent, letter->size), letter->bytes, letter->size);
    if (letter->as_text)
        put_digits(at + letter->as_text, version);
    if (letter->as_number)
        memcpy(at + letter->as_number, &(uint64_t){htobe64(version)}, sizeof version);
    publisher->unsent->end += letter->size;
    run.published++;
    run.confirmed += run.transport == BY_ZMTP;
}

/* How many should have been published, or sent, by now, of `count`. */
static uint64_t due_by_rate(uint64_t started, uint64_t rate, uint64_t count)
{
    uint64_t due = (now_us() - started) * rate / SECOND_US;
    return due < count ? due : count;
}

static uint64_t due(void)
{
    uint64_t due = run.delivered + run.lost + run.outstanding;
    if (run.paced)
        return due_by_rate(run.started, run.rate, run.count);
    return due < run.count ? due : run.count;
}

/* A closed loop is filled up an eighth at a time, as by a publisher that pipelines: one by one would measure how often
 * the publisher's server is woken. */
static bool worth_publishing(uint64_t until)
{
    return run.paced || until == run.count || until - run.published >= run.outstanding / 8;
}

static void publish_due(void)
{
    uint64_t until = due();
    if (!worth_publishing(until))
        return;
    while (run.published < until && buffered(publishers[0].unsent) < MOST_UNSENT)
        publish_next();
    for (uint32_t n = 0; n < run.publisher_count; n++)
        flush(&publishers[n]);
}

/* One line of Redis for each PUBLISH, in order. */
static size_t take_reply(const char *bytes, size_t size)
{
    const char *end = memchr(bytes, '\n', size);
    uint32_t connection = run.order[run.confirmed % websocket_count];
    if (!end)
        return 0;
    if (bytes[0] != ':')
        fail("Redis answered %.*s", (int)(end - bytes), bytes);
    if (bytes[1] == '0')
        fail("nobody had subscribed to what connection %u should get", connection);
    return (size_t)(end + 1 - bytes);
}

static size_t body_size(const char *head, size_t size);

static size_t take_publication(const char *bytes, size_t size)
{
    const char *end = memmem(bytes, size, "\r\n\r\n", 4);
    if (!end)
        return 0;
    if (!begins(bytes, size, "HTTP/1.1 2"))
        fail("a publication was answered %.*s", (int)(size < 300 ? size : 300), bytes);
    size_t head = (size_t)(end - bytes) + 4, whole = head + body_size(bytes, head);
    return size < whole ? 0 : whole;
}

/* What comes over a connection that nothing is asked of, such as a greeting, is of no interest. */
static size_t take_from_publisher(uint32_t index, const char *bytes, size_t size)
{
    size_t used = 0, taken;
    (void)index;
    if (run.transport == BY_ZMTP)
        return size;
    while ((taken = run.transport == BY_REDIS ? take_reply(bytes + used, size - used)
                                              : take_publication(bytes + used, size - used))) {
        used += taken;
        run.confirmed++;
    }
    return used;
}

static const char message_middle[] = "\",\"version\":";

/* The version of a message; fails if the message is not one that this connection should get. */
static uint64_t read_version(uint32_t index, const char *text, size_t size)
{
    static const char name[] = "\"client_id\":\"c";
    const char *at = memmem(text, size, name, strlen(name)), *end = text + size;
    if (at && (at += strlen(name)) && read_number(&at, end) == index &&
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

static void prepare_to_publish(uint64_t count, const char *file)
{
    read_letters(file);
    run.count = count;
    run.order = shuffled(websocket_count);
    /* Written once before the clock starts: page faults would count as the load's CPU. */
    run.versions = zeroed(count, sizeof *run.versions);
    run.latencies = (struct latencies){zeroed(count, sizeof(uint32_t)), 0};
    for (uint32_t n = 0; n < websocket_count; n++)
        websockets[run.order[n]].expected = n;
}

static void await_bytes(int fd, size_t wanted)
{
    char bytes[64];
    for (size_t got = 0; got < wanted;) {
        struct pollfd readable = {.fd = fd, .events = POLLIN};
        ssize_t more = poll(&readable, 1, 10000) == 1 ? recv(fd, bytes, wanted - got, 0) : 0;
        if (more <= 0)
            fail("a publisher was not greeted");
        got += (size_t)more;
    }
}

/* ZeroMQ's greetings have to be out of the way before the next command comes. */
static void greet(struct stream *publisher, const struct piece *greeting)
{
    size_t first = run.transport == BY_ZMTP ? ZMTP_GREETING : greeting->size;
    send_all(publisher, greeting->bytes, first);
    if (run.transport != BY_ZMTP)
        return;
    await_bytes(publisher->fd, ZMTP_GREETING);
    send_all(publisher, greeting->bytes + first, greeting->size - first);
    await_bytes(publisher->fd, 1);
}

static void open_publishers(uint16_t port)
{
    const struct piece *greeting = &run.pieces.all[0];
    if (run.transport == BY_ZMTP && greeting->size < ZMTP_GREETING)
        fail("publish: ZeroMQ's greeting is missing");
    run.publisher_count = run.transport == BY_HTTP ? HTTP_PUBLISHERS : 1;
    publishers = zeroed(run.publisher_count, sizeof *publishers);
    for (uint32_t n = 0; n < run.publisher_count; n++) {
        publishers[n].fd = open_connection(port);
        greet(&publishers[n], greeting);
        watch(publishers[n].fd, PUBLISHER, n);
    }
}

static void finish_publishing(void)
{
    if (run.published)
        last_version = run.versions[run.published - 1];
    for (uint32_t n = 0; n < run.publisher_count; n++) {
        close(publishers[n].fd);
        release(&publishers[n].unread);
        release(&publishers[n].unsent);
    }
    free(publishers);
    free(run.letters);
    free(run.order);
    free(run.versions);
    free_pieces(&run.pieces);
}

static void command_publish(enum transport transport, uint16_t port, const char *file, uint64_t count,
                            uint64_t outstanding, uint64_t rate)
{
    if (!websocket_count)
        fail("publish: nothing is connected");
    memset(&run, 0, sizeof run);
    run.transport = transport, run.outstanding = outstanding, run.rate = rate, run.paced = rate > 0;
    prepare_to_publish(count, file);
    open_publishers(port);
    uint64_t cpu = own_cpu_us();
    publish_all();
    cpu = own_cpu_us() - cpu;
    printf("{\"published\":%" PRIu64 ",\"delivered\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"stale\":%" PRIu64 ",",
           run.published, run.delivered, run.published - run.delivered, run.stale);
    print_figures(&run.latencies, run.last_delivery - run.started, cpu);
    finish_publishing();
}

/* --- frames and requests: what they have in common */

/* A change whose packets have not both come. */
struct pair {
    uint64_t since; /* 0: none */
    bool reached[2];
};

static struct {
    struct pieces pieces;
    uint32_t sent, answered;
    uint64_t packets_wanted, rate, started;
    struct latencies latencies, both;
    struct pair *pairs;
} work;

static void begin_work(struct pieces pieces, uint64_t packets_wanted, uint64_t rate)
{
    work.pieces = pieces;
    work.sent = work.answered = 0;
    work.packets_wanted = packets_wanted;
    work.rate = rate;
    work.latencies = (struct latencies){zeroed(pieces.count, sizeof(uint32_t)), 0};
    work.both = (struct latencies){zeroed(pieces.count, sizeof(uint32_t)), 0};
    work.pairs = zeroed(websocket_count / 2 + 1, sizeof *work.pairs);
    packets = 0;
}

static void count_answer(uint64_t sent_at)
{
    work.latencies.us[work.latencies.count++] = (uint32_t)(now_us() - sent_at);
    work.answered++;
}

static void count_packet(uint32_t index)
{
    struct pair *pair = work.pairs ? &work.pairs[index / 2] : NULL;
    if (!pair || !pair->since)
        return;
    pair->reached[index % 2] = true;
    if (!pair->reached[0] || !pair->reached[1])
        return;
    work.both.us[work.both.count++] = (uint32_t)(now_us() - pair->since);
    pair->since = 0;
}

/* How many may have been sent by now. */
static uint64_t sendable(uint32_t window)
{
    return work.rate ? due_by_rate(work.started, work.rate, work.pieces.count) : (uint64_t)work.answered + window;
}

/* Counts the next piece as sent, for the pair of a connection, and answers when it was sent, or due. */
static uint64_t count_sent(uint32_t connection)
{
    uint64_t at = work.rate ? work.started + (work.sent + 1) * SECOND_US / work.rate : now_us();
    if (connection >= websocket_count)
        fail("no connection %u is there to get a packet", connection);
    work.pairs[connection / 2] = (struct pair){.since = at};
    work.sent++;
    return at;
}

/* Calls `send_more` and serves, until all is answered and every packet has come. */
static void do_work(void (*send_more)(void))
{
    uint64_t cpu = own_cpu_us();
    struct patience patience = patience_from_now();
    work.started = now_us();
    if (work.rate)
        start_ticking(work.rate);
    while (!exhausted(&patience, work.answered + packets) &&
           (work.answered < work.pieces.count || packets < work.packets_wanted)) {
        send_more();
        serve(1000);
    }
    stop_ticking();
    cpu = own_cpu_us() - cpu;
    printf("{\"answered\":%u,\"packets\":%" PRIu64 ",\"unanswered\":%u,\"missing\":%" PRIu64 ",", work.answered,
           packets, work.pieces.count - work.answered,
           packets < work.packets_wanted ? work.packets_wanted - packets : 0);
    qsort(work.both.us, work.both.count, sizeof *work.both.us, ascending);
    printf("\"packets_p50_us\":%u,\"packets_p99_us\":%u,", percentile(&work.both, 50), percentile(&work.both, 99));
    print_figures(&work.latencies, patience.since - work.started, cpu);
    free_pieces(&work.pieces);
    free(work.both.us);
    free(work.pairs);
    work.pairs = NULL;
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
    uint64_t until = sendable(queue.window);
    while (queue.out < queue.in && work.sent < until) {
        uint32_t connection = queue.ring[queue.out++ % websocket_count];
        struct piece *text = &work.pieces.all[queue.first_piece[connection]];
        websockets[connection].sent_at = count_sent(connection);
        send_frame(&websockets[connection].stream, 1, text->bytes, text->size);
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

static void command_frames(const char *file, uint32_t window, uint64_t packets_wanted, uint64_t rate)
{
    struct pieces lines = read_lines(file);
    queue.first_piece = resized(NULL, websocket_count, sizeof *queue.first_piece);
    queue.ring = resized(NULL, websocket_count, sizeof *queue.ring);
    queue.in = queue.out = 0;
    queue.window = window;
    queue_lines(&lines);
    begin_work(lines, packets_wanted, rate);
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

static void send_request(struct requester *requester)
{
    const struct piece *request = &work.pieces.all[work.sent];
    requester->sent_at = count_sent(request->connection);
    send_all(&requester->stream, request->bytes, request->size);
}

static void send_requests(void)
{
    uint64_t until = sendable(requester_count);
    for (uint32_t n = 0; n < requester_count && work.sent < work.pieces.count && work.sent < until; n++)
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

/* Servers over libuv accept one connection in each turn of their loop. Under load the last would wait for long. */
#define ACCEPTING_MS 300

static void serve_for(int ms)
{
    uint64_t until = now_us() + (uint64_t)ms * 1000;
    for (uint64_t now; (now = now_us()) < until;)
        serve((int)((until - now) / 1000) + 1);
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

static void command_requests(uint16_t port, const char *file, uint32_t count, uint64_t packets_wanted, uint64_t rate)
{
    open_requesters(port, count);
    serve_for(ACCEPTING_MS);
    begin_work(read_pieces(file, true), packets_wanted, rate);
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

/* The number of a word among `names`, which end with NULL. */
static uint32_t choice(const char *word, const char *const *names)
{
    for (uint32_t n = 0; names[n]; n++)
        if (!strcmp(word, names[n]))
            return n;
    fail("none of those that there are: %s", word);
}

static const char *const protocols[] = {"raw", "socketio", "centrifugo", NULL};
static const char *const transports[] = {"redis", "http", "zmtp", NULL};

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
    if (is(w, count, "from", 1))
        command_from(w[1]);
    else if (is(w, count, "connect", 4))
        command_connect((uint16_t)number(w[1]), w[2], (uint32_t)number(w[3]), (enum protocol)choice(w[4], protocols));
    else if (is(w, count, "settle", 1))
        command_settle(strtod(w[1], NULL));
    else if (is(w, count, "publish", 6))
        command_publish((enum transport)choice(w[1], transports), (uint16_t)number(w[2]), w[3], number(w[4]),
                        number(w[5]), number(w[6]));
    else if (is(w, count, "frames", 4))
        command_frames(w[1], (uint32_t)number(w[2]), number(w[3]), number(w[4]));
    else if (is(w, count, "requests", 5))
        command_requests((uint16_t)number(w[1]), w[2], (uint32_t)number(w[3]), number(w[4]), number(w[5]));
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
