// The floor of the live benchmark: what the kernel alone costs. One process sends messages over many TCP connections, in
// turn, with plain send() calls; another reads them. Nothing is framed, looked up or encoded.
//
//   floor CONNECTIONS COUNT SIZE OUTSTANDING
//
// At most OUTSTANDING messages are unread at a time, as in the benchmark's closed loop. Prints the sender's CPU in
// microseconds for each message.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static double cpu_us(void) {
  struct timespec spent;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
  return (double)spent.tv_sec * 1e6 + (double)spent.tv_nsec / 1e3;
}

// Reads until `count` messages have come, and says after each read how many that were so far.
static void read_all(struct sockaddr_in *address, int connections, long count, long size, volatile long *seen) {
  int epoll = epoll_create1(0);
  for (int number = 0; number < connections; number++) {
    int reader = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(reader, (struct sockaddr *)address, sizeof *address) < 0) fail("connect");
    struct epoll_event event = {.events = EPOLLIN, .data.fd = reader};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, reader, &event) < 0) fail("epoll_ctl");
  }
  static char buffer[1 << 16];
  for (long bytes = 0; bytes < count * size;) {
    struct epoll_event events[64];
    int ready = epoll_wait(epoll, events, 64, 10000);
    if (ready <= 0) fail("epoll_wait");
    for (int number = 0; number < ready; number++) {
      ssize_t got = recv(events[number].data.fd, buffer, sizeof buffer, 0);
      if (got <= 0) fail("recv");
      bytes += got;
    }
    __atomic_store_n(seen, bytes / size, __ATOMIC_RELEASE);
  }
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  int connections = atoi(argv[1]);
  long count = atol(argv[2]), size = atol(argv[3]), outstanding = atol(argv[4]);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  volatile long *seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, 4096) < 0) fail("listen");
  getsockname(listener, (struct sockaddr *)&address, &length);
  pid_t reader = fork();
  if (reader == 0) {
    read_all(&address, connections, count, size, seen);
    return 0;
  }
  int *peers = calloc((size_t)connections, sizeof *peers);
  int yes = 1;
  for (int number = 0; number < connections; number++) {
    peers[number] = accept(listener, NULL, NULL);
    if (peers[number] < 0) fail("accept");
    setsockopt(peers[number], IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  }
  char *message = malloc((size_t)size);
  memset(message, 'x', (size_t)size);
  double before = cpu_us();
  struct timespec nap = {0, 50000};
  for (long sent = 0; sent < count; sent++) {
    // A nap, not a spin: waiting must not count as sending.
    while (sent - __atomic_load_n(seen, __ATOMIC_ACQUIRE) >= outstanding) nanosleep(&nap, NULL);
    if (send(peers[sent % connections], message, (size_t)size, 0) != size) fail("send");
  }
  printf("%.2f\n", (cpu_us() - before) / (double)count);
  int status;
  waitpid(reader, &status, 0);
  return status != 0;
}
