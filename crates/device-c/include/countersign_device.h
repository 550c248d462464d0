/*
 * The device's side of Countersign: stay connected, deliver, take commands, renew the certificate.
 * Made from src/boundary.rs, where changes belong.
 *
 * Holds for all of it:
 *
 * - Texts are UTF-8 and end with a zero octet. A path is whatever the operating system takes.
 * - A pointer is NULL, or points to what its type says for as long as the call takes. Nothing that is handed in is kept.
 * - What a function gives is freed by the one function named for it, once, and not used after that.
 * - A function that may fail gives CS_OK or another code, and where `error` is not NULL, `*error` is what happened,
 *   with its cure: to be freed with cs_error_free. Otherwise `*error` becomes NULL. What was there before is not freed.
 * - A cs_device may be used from several threads at once, until it is closed. Everything else belongs to one thread at a time.
 * - Nothing of yours is ever called, and no signal is taken, on the library's own thread. After fork() only the parent may
 *   use what was opened before.
 * - Waiting is in milliseconds; 0 looks and does not wait.
 */


#ifndef COUNTERSIGN_DEVICE_H
#define COUNTERSIGN_DEVICE_H

#include <stddef.h>
#include <stdint.h>

/**
 * Done.
 */
#define CS_OK 0

/**
 * Another failure.
 */
#define CS_FAILED 1

/**
 * What was handed in does not do.
 */
#define CS_USAGE 2

/**
 * The identity folder, its key or its disk cannot be used.
 */
#define CS_IDENTITY 3

/**
 * The platform cannot be reached, or not yet.
 */
#define CS_UNREACHABLE 4

/**
 * Whoever answers is not the platform that this device trusts.
 */
#define CS_NOT_TRUSTED 5

/**
 * The platform refused the certificate.
 */
#define CS_CERTIFICATE_REFUSED 6

/**
 * The platform refused the session: suspended, unknown, or no policy permits it.
 */
#define CS_SESSION_REFUSED 7

/**
 * The platform did not permit a publish or a subscription.
 */
#define CS_NOT_PERMITTED 8

/**
 * The connection was ended or cut.
 */
#define CS_ENDED 9

/**
 * The platform refused to renew the certificate.
 */
#define CS_ENROLMENT_REFUSED 10

/**
 * Somebody is to approve the device first.
 */
#define CS_WAITS_FOR_APPROVAL 11

/**
 * The library's thread has ended by a fault: close, and open again.
 */
#define CS_STOPPED 12

/**
 * No message came in the time. It is no failure, and `*error` stays NULL.
 */
#define CS_NO_MESSAGE 20

/**
 * As many messages wait as may: this one was not taken.
 */
#define CS_QUEUE_FULL 21

/**
 * Where the library stands with the platform.
 */
typedef enum cs_state {
  /**
   * On its way in.
   */
  CS_CONNECTING = 0,
  /**
   * Admitted.
   */
  CS_CONNECTED = 1,
  /**
   * It failed, and tries again by itself.
   */
  CS_WAITING = 2,
  /**
   * Its thread has ended by a fault.
   */
  CS_HALTED = 3,
} cs_state;

/**
 * A device that is open.
 */
typedef struct cs_device cs_device;

/**
 * What happened, and what to do about it.
 */
typedef struct cs_error cs_error;

/**
 * A message for the device.
 */
typedef struct cs_message cs_message;

/**
 * How to open a device. Set all to zero, then `size`, then what is to differ: 0 is the default of each.
 */
typedef struct cs_options {
  /**
   * sizeof(cs_options): so that a later library knows what an earlier program means.
   */
  size_t size;
  /**
   * Seconds between signs of life; default 60, at most 65535.
   */
  uint32_t keep_alive_s;
  /**
   * The longest that connecting may take, in seconds; default 10.
   */
  uint32_t connect_timeout_s;
  /**
   * The most messages that wait for the platform; default 10000.
   */
  uint32_t queue_messages;
  /**
   * The most messages for the device that wait for cs_next_message; default 64. When another comes the oldest goes.
   */
  uint32_t commands_max;
  /**
   * The most bytes that wait for the platform; default 8 MiB.
   */
  uint64_t queue_bytes;
  /**
   * Not 0: others renew the certificate. By default this library does.
   */
  int leave_renewal;
  /**
   * Not 0: what happens is told on standard error, for people.
   */
  int verbose;
} cs_options;

/**
 * How a device stands.
 */
typedef struct cs_status {
  /**
   * sizeof(cs_status), set by whoever asks.
   */
  size_t size;
  /**
   * Where it stands.
   */
  enum cs_state state;
  /**
   * Messages that wait for the platform, on disk.
   */
  uint64_t waiting;
  /**
   * Messages that the platform has, since the device was opened.
   */
  uint64_t delivered;
  /**
   * Messages that the platform's policies refused since then, or that are larger than it takes; they are gone.
   */
  uint64_t refused;
  /**
   * Messages for the device that had no room, because they were not taken; they are gone.
   */
  uint64_t commands_lost;
  /**
   * Until when the certificate in use is valid, in seconds since 1970; 0 in the first moment.
   */
  int64_t certificate_until_s;
} cs_status;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Opens an identity folder, and starts a thread that connects, delivers, renews, and connects again, by itself and for as
 * long as it takes. Messages are taken from now on, whether the platform is there or not.
 *
 * One process opens a folder, once; countersign-agent run is another.
 *
 * Gives the device, to be closed with cs_close; NULL if the folder cannot be used.
 */
struct cs_device *cs_open(const char *identity_folder,
                          const struct cs_options *options,
                          struct cs_error **error);

/**
 * Takes a message for the platform. When this gives CS_OK the message is on disk, and neither a lost network nor a lost
 * power loses it: it is delivered at least once, in the order in which messages were taken.
 *
 * `topic`: NULL is telemetry of this device, devices/ID/telemetry. `payload`: `length` octets; may be NULL if that is 0.
 */
int cs_publish(struct cs_device *device,
               const char *topic,
               const void *payload,
               size_t length,
               struct cs_error **error);

/**
 * Waits for the next message for the device: a command, under devices/ID/commands.
 *
 * CS_OK: `*message` is it, to be freed with cs_message_free. CS_NO_MESSAGE: none came in the time. In every other case, too,
 * `*message` becomes NULL. The platform regards a message as taken when it has come to this library.
 */
int cs_next_message(struct cs_device *device,
                    uint32_t timeout_ms,
                    struct cs_message **message,
                    struct cs_error **error);

/**
 * The topic of a message, for as long as the message lives; of NULL it is empty.
 */
const char *cs_message_topic(const struct cs_message *message);

/**
 * The payload of a message, for as long as the message lives; never NULL. A zero octet, which is not of it, stands after its
 * end, so that a text can be read as one; it may hold others.
 */
const void *cs_message_payload(const struct cs_message *message);

/**
 * How many octets the payload of a message has.
 */
size_t cs_message_length(const struct cs_message *message);

/**
 * Frees a message; NULL is fine.
 */
void cs_message_free(struct cs_message *message);

/**
 * Waits until the platform has admitted the device. Nobody has to: messages are taken before, too.
 *
 * If it has not in the time: what is wrong, with its cure. The library goes on trying.
 */
int cs_wait_connected(struct cs_device *device, uint32_t timeout_ms, struct cs_error **error);

/**
 * How the device stands.
 *
 * `fault`: what is wrong with the link now, to be freed with cs_error_free; NULL if nothing is. May be NULL if nobody asks.
 */
int cs_status_read(struct cs_device *device,
                   struct cs_status *status,
                   struct cs_error **fault,
                   struct cs_error **error);

/**
 * Delivers what can be delivered in the time, ends the session and the thread, and frees the device: always, and whatever
 * this gives. It takes at most some seconds longer than it was given.
 *
 * CS_OK: the platform has all of it. Otherwise messages stay on disk, and are delivered when the folder is opened again;
 * `*error` says how many, and why. NULL is fine.
 */
int cs_close(struct cs_device *device,
             uint32_t timeout_ms,
             struct cs_error **error);

/**
 * The code of an error; CS_OK of NULL.
 */
int cs_error_code(const struct cs_error *error);

/**
 * What happened, for as long as the error lives; of NULL it is empty.
 */
const char *cs_error_message(const struct cs_error *error);

/**
 * What to do about it, for as long as the error lives; NULL if nothing is known to help.
 */
const char *cs_error_cure(const struct cs_error *error);

/**
 * Frees an error; NULL is fine.
 */
void cs_error_free(struct cs_error *error);

/**
 * The version of this library. It is never freed.
 */
const char *cs_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* COUNTERSIGN_DEVICE_H */
