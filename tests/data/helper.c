/* System calls that the tests need and Rust's standard library does not have. */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* truncate PATH LENGTH: by path, so that nothing is ever opened or closed.
 * map PATH: writes through a mapping, closes the file, says "written", and ends the mapping
 * when its standard input ends. */
int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "truncate") == 0)
        return truncate(argv[2], atol(argv[3])) != 0;
    if (argc == 3 && strcmp(argv[1], "map") == 0) {
        int file = open(argv[2], O_RDWR);
        char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (file < 0 || map == MAP_FAILED)
            return 1;
        close(file);
        memcpy(map, "mapped", 6);
        puts("written");
        fflush(stdout);
        while (getchar() != EOF)
            ;
        return munmap(map, 4096) != 0;
    }
    return 2;
}
