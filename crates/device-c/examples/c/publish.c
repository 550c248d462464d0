/* Connects, publishes three values, prints the commands that come, and closes.
 *
 *     publish FOLDER [SECONDS]
 *
 * FOLDER: the identity folder. SECONDS: how long to listen for commands; default 2. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "countersign_device.h"

/* Says what happened and what to do, and frees it. The code, so that it can be the program's exit code. */
static int told(const char *what, int code, cs_error *error) {
    const char *cure = cs_error_cure(error);
    fprintf(stderr, "error: %s: %s\n", what, cs_error_message(error));
    if (cure != NULL) {
        fprintf(stderr, "hint: %s\n", cure);
    }
    cs_error_free(error);
    return code;
}

int main(int argc, char **argv) {
    static const char *const values[] = {"21.5", "21.6", "21.7"};
    const char *folder = argc > 1 ? argv[1] : ".";
    int seconds = argc > 2 ? atoi(argv[2]) : 2;
    cs_error *error = NULL;
    int code;

    /* It loads the folder, and connects in the background from now on. */
    cs_device *device = cs_open(folder, NULL, &error);
    if (device == NULL) {
        return told("open", cs_error_code(error), error);
    }

    /* Each is on disk when cs_publish returns, whether the platform is there or not. */
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        code = cs_publish(device, NULL, values[i], strlen(values[i]), &error);
        if (code != CS_OK) {
            told("publish", code, error);
        }
    }

    /* Nobody has to wait; but whoever looks on wants to know. */
    code = cs_wait_connected(device, 10000, &error);
    if (code != CS_OK) {
        told("connect", code, error);
    } else {
        printf("connected, library %s\n", cs_version());
        fflush(stdout);
    }

    for (int second = 0; second < seconds; second++) {
        cs_message *message;
        code = cs_next_message(device, 1000, &message, &error);
        if (code == CS_OK) {
            printf("%s\t", cs_message_topic(message));
            fwrite(cs_message_payload(message), 1, cs_message_length(message), stdout);
            printf("\n");
            fflush(stdout);
            cs_message_free(message);
        } else if (code != CS_NO_MESSAGE) {
            told("listen", code, error);
            break;
        }
    }

    code = cs_close(device, 5000, &error);
    if (code != CS_OK) {
        return told("close", code, error);
    }
    printf("delivered\n");
    return 0;
}
