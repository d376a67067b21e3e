/* Copyright: (c) 2026, vmimage.qcow contributors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A filesystem that calls data a hole: to be preloaded. VMIMAGE_QCOW_LIES=END:START:STOP is about bytes [START, STOP) of every file whose name
 * ends with END. SEEK_DATA and SEEK_HOLE lie about them, to whoever asks in this process and all that it starts; read() tells the truth.
 * With VMIMAGE_QCOW_NO_MAP set there is no extent map (FIEMAP) either, as on filesystems without one. Files cannot be cloned.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define FIEMAP 0xC020660BUL
#define FICLONE 0x40049409UL

typedef off_t (*seek_call)(int, off_t, int);
typedef int (*control_call)(int, unsigned long, void *);

static int lied_about(int fd, off_t *start, off_t *stop)
{
    char link[64], name[4096], end[512];
    long long first, last;
    const char *lies = getenv("VMIMAGE_QCOW_LIES");
    ssize_t length;

    if (lies == NULL || sscanf(lies, "%511[^:]:%lld:%lld", end, &first, &last) != 3)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, name, sizeof name - 1);
    if (length < (ssize_t)strlen(end))
        return 0;
    name[length] = '\0';
    *start = first;
    *stop = last;
    return strcmp(name + length - strlen(end), end) == 0;
}

static off_t answer(seek_call truth, int fd, off_t offset, int whence)
{
    off_t start, stop, place;

    if ((whence != SEEK_DATA && whence != SEEK_HOLE) || !lied_about(fd, &start, &stop))
        return truth(fd, offset, whence);
    if (whence == SEEK_DATA) {
        place = truth(fd, offset, SEEK_DATA);
        return place >= start && place < stop ? truth(fd, stop, SEEK_DATA) : place;
    }
    if (offset >= start && offset < stop)
        return truth(fd, offset, SEEK_SET);
    place = truth(fd, offset, SEEK_HOLE);
    return offset < start && place > start ? truth(fd, start, SEEK_SET) : place;
}

static seek_call true_seek(void)
{
    void *found = dlsym(RTLD_NEXT, "lseek64");

    return (seek_call)(found != NULL ? found : dlsym(RTLD_NEXT, "lseek"));
}

off_t lseek(int fd, off_t offset, int whence)
{
    return answer(true_seek(), fd, offset, whence);
}

#undef lseek64
off64_t lseek64(int fd, off64_t offset, int whence)
{
    return answer(true_seek(), fd, offset, whence);
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    request &= 0xFFFFFFFFUL;
    if (request == FICLONE || (request == FIEMAP && getenv("VMIMAGE_QCOW_NO_MAP") != NULL)) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return ((control_call)dlsym(RTLD_NEXT, "ioctl"))(fd, request, argument);
}
