/* The paths that the example does not take. What is asked for is the first argument; whatever does not hold ends the program. */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "countersign_device.h"

#define HOLDS(what)                                                                     \
    do {                                                                                \
        if (!(what)) {                                                                  \
            fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #what);            \
            exit(1);                                                                    \
        }                                                                               \
    } while (0)

/* It is the failure that is expected, and says what to do about it. The error by its address: C does not say which of the
 * arguments of a call comes first. */
static void fails(int code, int expected, cs_error **error) {
    if (code != expected || cs_error_code(*error) != expected) {
        fprintf(stderr, "%d, not %d: %s\n", code, expected, cs_error_message(*error));
        exit(1);
    }
    HOLDS(cs_error_message(*error)[0] != '\0');
    HOLDS(cs_error_cure(*error) != NULL);
    printf("%d\t%s\t%s\n", code, cs_error_message(*error), cs_error_cure(*error));
    cs_error_free(*error);
    *error = NULL;
}

static void succeeds(int code, cs_error **error) {
    if (code != CS_OK) {
        fprintf(stderr, "%d: %s\n", code, cs_error_message(*error));
        exit(1);
    }
    HOLDS(*error == NULL);
}

static cs_device *opened(const char *folder, const cs_options *options) {
    cs_error *error = NULL;
    cs_device *device = cs_open(folder, options, &error);
    succeeds(cs_error_code(error), &error);
    HOLDS(device != NULL);
    return device;
}

/* NULL where it can be, and wrong sizes. No folder and no platform. */
static void nothing(const char *missing) {
    cs_error *error = (cs_error *)1;
    cs_message *message = (cs_message *)1;
    cs_status status;
    cs_options options;

    HOLDS(cs_open(missing, NULL, &error) == NULL);
    fails(CS_IDENTITY, CS_IDENTITY, &error);
    HOLDS(cs_open(missing, NULL, NULL) == NULL);
    HOLDS(cs_open(NULL, NULL, NULL) == NULL);
    HOLDS(cs_open(NULL, NULL, &error) == NULL);
    fails(CS_USAGE, CS_USAGE, &error);
    memset(&options, 0, sizeof options);
    HOLDS(cs_open(missing, &options, &error) == NULL);
    fails(CS_USAGE, CS_USAGE, &error);
    options.size = sizeof options;
    options.keep_alive_s = 70000;
    HOLDS(cs_open(missing, &options, &error) == NULL);
    fails(CS_USAGE, CS_USAGE, &error);

    fails(cs_publish(NULL, NULL, "x", 1, &error), CS_USAGE, &error);
    HOLDS(cs_publish(NULL, NULL, NULL, 0, NULL) == CS_USAGE);
    fails(cs_next_message(NULL, 0, &message, &error), CS_USAGE, &error);
    HOLDS(message == NULL);
    HOLDS(cs_next_message(NULL, 0, NULL, NULL) == CS_USAGE);
    fails(cs_wait_connected(NULL, 0, &error), CS_USAGE, &error);
    HOLDS(cs_wait_connected(NULL, 0, NULL) == CS_USAGE);
    fails(cs_status_read(NULL, &status, NULL, &error), CS_USAGE, &error);
    HOLDS(cs_status_read(NULL, NULL, NULL, NULL) == CS_USAGE);
    succeeds(cs_close(NULL, 0, &error), &error);
    HOLDS(cs_close(NULL, 0, NULL) == CS_OK);

    HOLDS(cs_message_topic(NULL)[0] == '\0');
    HOLDS(((const char *)cs_message_payload(NULL))[0] == '\0');
    HOLDS(cs_message_length(NULL) == 0);
    cs_message_free(NULL);
    HOLDS(cs_error_code(NULL) == CS_OK);
    HOLDS(cs_error_message(NULL)[0] == '\0');
    HOLDS(cs_error_cure(NULL) == NULL);
    cs_error_free(NULL);
    HOLDS(cs_version()[0] != '\0');
}

/* Lets the library's thread have its turn: whoever only looks again and again may keep it from it. */
static void pause_a_moment(void) {
    const struct timespec moment = {0, 10 * 1000 * 1000};
    nanosleep(&moment, NULL);
}

/* On a folder whose platform permits it to publish what it has subscribed to. */
static void round_trip(const char *folder) {
    const char with_zero[] = {'a', '\0', 'b'};
    const char *command = "devices/pump-1/commands/restart";
    cs_error *error = NULL, *fault = NULL;
    cs_message *message;
    cs_status status;
    cs_options options;

    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.queue_messages = 3;
    options.commands_max = 1;
    cs_device *device = opened(folder, &options);
    HOLDS(cs_open(folder, NULL, &error) == NULL);
    fails(CS_USAGE, CS_USAGE, &error);
    succeeds(cs_wait_connected(device, 20000, &error), &error);
    HOLDS(cs_next_message(device, 0, &message, &error) == CS_NO_MESSAGE);
    HOLDS(message == NULL && error == NULL);

    fails(cs_publish(device, "devices/+/x", "x", 1, &error), CS_USAGE, &error);
    fails(cs_publish(device, "\xff", "x", 1, &error), CS_USAGE, &error);
    fails(cs_publish(device, NULL, NULL, 1, &error), CS_USAGE, &error);
    fails(cs_publish(device, NULL, "x", (size_t)-1, &error), CS_USAGE, &error);
    fails(cs_next_message(device, 0, NULL, &error), CS_USAGE, &error);
    memset(&status, 0, sizeof status);
    fails(cs_status_read(device, &status, NULL, &error), CS_USAGE, &error);
    fails(cs_status_read(device, NULL, NULL, &error), CS_USAGE, &error);

    succeeds(cs_publish(device, command, with_zero, sizeof with_zero, &error), &error);
    succeeds(cs_next_message(device, 10000, &message, &error), &error);
    HOLDS(strcmp(cs_message_topic(message), command) == 0);
    HOLDS(cs_message_length(message) == sizeof with_zero);
    HOLDS(memcmp(cs_message_payload(message), with_zero, sizeof with_zero) == 0);
    HOLDS(((const char *)cs_message_payload(message))[sizeof with_zero] == '\0');
    cs_message_free(message);

    /* Of two there is room for the last; an empty payload is one too. */
    succeeds(cs_publish(device, command, "first", 5, &error), &error);
    succeeds(cs_publish(device, command, NULL, 0, &error), &error);
    status.size = sizeof status;
    time_t end = time(NULL) + 10;
    do {
        pause_a_moment();
        succeeds(cs_status_read(device, &status, &fault, &error), &error);
        HOLDS(fault == NULL);
    } while (status.commands_lost == 0 && time(NULL) < end);
    HOLDS(status.commands_lost == 1);
    HOLDS(status.state == CS_CONNECTED);
    HOLDS(status.refused == 0);
    HOLDS(status.certificate_until_s > 0);
    succeeds(cs_next_message(device, 10000, &message, &error), &error);
    HOLDS(cs_message_length(message) == 0);
    cs_message_free(message);
    /* What is larger than a platform takes is not taken, and stands in nobody's way. */
    char *large = calloc(1, 400 * 1024);
    HOLDS(large != NULL);
    fails(cs_publish(device, NULL, large, 400 * 1024, &error), CS_NOT_PERMITTED, &error);
    free(large);
    succeeds(cs_publish(device, NULL, "after it", 8, &error), &error);
    end = time(NULL) + 10;
    do {
        pause_a_moment();
        succeeds(cs_status_read(device, &status, &fault, &error), &error);
        HOLDS(fault == NULL);
    } while (status.delivered < 4 && time(NULL) < end);
    HOLDS(status.delivered == 4 && status.refused == 0 && status.waiting == 0);
    succeeds(cs_close(device, 10000, &error), &error);
}

/* Its standard input says when the platform is gone. */
static void away(const char *folder) {
    cs_error *error = NULL, *fault = NULL;
    cs_status status;
    cs_options options;
    int code = CS_OK, taken = 0;

    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.queue_messages = 3;
    cs_device *device = opened(folder, &options);
    succeeds(cs_wait_connected(device, 20000, &error), &error);
    printf("connected\n");
    fflush(stdout);
    HOLDS(getchar() != EOF);
    while (taken < 10) {
        code = cs_publish(device, NULL, "kept", 4, &error);
        if (code != CS_OK) {
            break;
        }
        taken++;
    }
    fails(code, CS_QUEUE_FULL, &error);
    HOLDS(taken == 3);
    status.size = sizeof status;
    do {
        pause_a_moment();
        succeeds(cs_status_read(device, &status, &fault, &error), &error);
        code = cs_error_code(fault);
        cs_error_free(fault);
        /* Pauses: nothing comes. */
        cs_message *message;
        HOLDS(cs_next_message(device, 50, &message, &error) == CS_NO_MESSAGE);
    } while (code != CS_UNREACHABLE);
    HOLDS(status.waiting == 3);
    fails(cs_wait_connected(device, 10, &error), CS_UNREACHABLE, &error);
    fails(cs_close(device, 10, &error), CS_UNREACHABLE, &error);
}

/* Publishes one message, and waits until the platform has it. */
static void sends(const char *folder, const char *topic, const char *payload) {
    cs_error *error = NULL;
    cs_device *device = opened(folder, NULL);
    succeeds(cs_publish(device, topic, payload, strlen(payload), &error), &error);
    succeeds(cs_close(device, 20000, &error), &error);
}

int main(int argc, char **argv) {
    HOLDS(argc > 2);
    if (strcmp(argv[1], "nothing") == 0) {
        nothing(argv[2]);
    } else if (strcmp(argv[1], "round-trip") == 0) {
        round_trip(argv[2]);
    } else if (strcmp(argv[1], "away") == 0) {
        away(argv[2]);
    } else {
        HOLDS(strcmp(argv[1], "send") == 0 && argc == 5);
        sends(argv[2], argv[3], argv[4]);
    }
    return 0;
}
