/*
 * What the first packet of a flow costs.
 *
 *     newflows INTERFACE SOURCE DESTINATION DESTINATIONS PORT FLOWS SEED CPU
 *
 * Sends FLOWS UDP packets out of INTERFACE, one end of a veth pair whose other end has the MAC address 02:00:00:00:00:01.
 * Each has a source port that no other one has, and goes to PORT of an address chosen at random among the DESTINATIONS
 * from DESTINATION on. Frames are made before the clock starts. The other end's stack (connection tracking, translation,
 * forwarding) works within the send call, so the time of the calls is the time of a packet's whole way.
 *
 * Prints the nanoseconds of one packet (the middle one of batches of 100, so that an interruption of the program does
 * not count; and the mean), and how many could not be sent.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { PAYLOAD = 18, FIRST_PORT = 1024, MOST_FLOWS = 64000, BATCH = 100 };

struct frame {
	struct ether_header ethernet;
	struct iphdr ip;
	struct udphdr udp;
	uint8_t payload[PAYLOAD];
} __attribute__((packed));

static uint64_t state;

/* splitmix64 */
static uint64_t random_number(void)
{
	uint64_t z = (state += 0x9e3779b97f4a7c15u);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

/* The ones' complement sum of RFC 1071 over whole 16-bit words. */
static uint32_t words(const void *data, size_t size, uint32_t sum)
{
	const uint8_t *byte = data;

	for (size_t i = 0; i + 1 < size; i += 2)
		sum += (uint32_t)byte[i] << 8 | byte[i + 1];
	return sum;
}

static uint16_t checksum(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons((uint16_t)~sum);
}

static void make(struct frame *frame, in_addr_t source, in_addr_t destination, uint16_t from, uint16_t to)
{
	static const uint8_t there[] = {2, 0, 0, 0, 0, 1}, here[] = {2, 0, 0, 0, 0, 2};

	memset(frame, 0, sizeof *frame);
	memcpy(frame->ethernet.ether_dhost, there, sizeof there);
	memcpy(frame->ethernet.ether_shost, here, sizeof here);
	frame->ethernet.ether_type = htons(ETHERTYPE_IP);
	frame->ip.version = 4;
	frame->ip.ihl = 5;
	frame->ip.ttl = 64;
	frame->ip.protocol = IPPROTO_UDP;
	frame->ip.tot_len = htons(sizeof *frame - sizeof frame->ethernet);
	frame->ip.saddr = source;
	frame->ip.daddr = destination;
	frame->ip.check = checksum(words(&frame->ip, sizeof frame->ip, 0));
	frame->udp.source = htons(from);
	frame->udp.dest = htons(to);
	frame->udp.len = htons(sizeof frame->udp + PAYLOAD);

	uint32_t sum = words(&frame->ip.saddr, 8, IPPROTO_UDP + sizeof frame->udp + PAYLOAD);
	frame->udp.check = checksum(words(&frame->udp, sizeof frame->udp + PAYLOAD, sum));
	if (!frame->udp.check)
		frame->udp.check = 0xffff;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int ascending(const void *one, const void *other)
{
	double difference = *(const double *)one - *(const double *)other;

	return (difference > 0) - (difference < 0);
}

int main(int argc, char **argv)
{
	if (argc != 9) {
		fprintf(stderr, "usage: newflows INTERFACE SOURCE DESTINATION DESTINATIONS PORT FLOWS SEED CPU\n");
		return 64;
	}
	in_addr_t source = inet_addr(argv[2]);
	uint32_t first = ntohl(inet_addr(argv[3]));
	uint64_t destinations = strtoull(argv[4], NULL, 10);
	uint16_t port = (uint16_t)atoi(argv[5]);
	long flows = atol(argv[6]);
	cpu_set_t cpus;

	state = strtoull(argv[7], NULL, 10);
	if (flows < 1 || flows > MOST_FLOWS || !destinations) {
		fprintf(stderr, "newflows: 1 to %d flows, to at least one destination\n", MOST_FLOWS);
		return 64;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[8]), &cpus);
	if (sched_setaffinity(0, sizeof cpus, &cpus))
		perror("newflows: sched_setaffinity");

	int fd = socket(AF_PACKET, SOCK_RAW, 0);
	struct sockaddr_ll out = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(argv[1])};
	int yes = 1;

	if (fd < 0 || !out.sll_ifindex || bind(fd, (struct sockaddr *)&out, sizeof out)) {
		perror("newflows: packet socket");
		return 1;
	}
	setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &yes, sizeof yes);

	struct frame *frames = malloc((size_t)flows * sizeof *frames);
	if (!frames) {
		perror("newflows");
		return 1;
	}
	for (long i = 0; i < flows; i++)
		make(&frames[i], source, htonl(first + (uint32_t)(random_number() % destinations)),
		     (uint16_t)(FIRST_PORT + i), port);

	long failed = 0, batches = (flows + BATCH - 1) / BATCH;
	double *spent = malloc((size_t)batches * sizeof *spent), started = now(), before = started, ended = started;
	if (!spent) {
		perror("newflows");
		return 1;
	}
	for (long batch = 0; batch < batches; batch++) {
		long first_one = batch * BATCH, last = first_one + BATCH < flows ? first_one + BATCH : flows;

		for (long i = first_one; i < last; i++)
			failed += send(fd, &frames[i], sizeof frames[i], 0) != (ssize_t)sizeof frames[i];
		ended = now();
		spent[batch] = (ended - before) / (double)(last - first_one);
		before = ended;
	}
	qsort(spent, (size_t)batches, sizeof *spent, ascending);

	printf("%.1f %.1f %ld\n", spent[batches / 2], (ended - started) / (double)flows, failed);
	return 0;
}
