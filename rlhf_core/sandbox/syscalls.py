"""System calls by what tested code may do with them: a name, its number on x86_64, its number on aarch64.

The numbers are those of the kernel's `unistd.h`. What is in none of the three tables does not exist for tested code (ENOSYS), so a
call that a later kernel adds is refused as well.
"""

from __future__ import annotations

from collections.abc import Mapping

# Read, compute, wait, and change files that Landlock lets be changed. Not chmod, chown, utime and xattr, which Landlock does not
# check; not memfd_create, shmget and mq_open, whose memory no limit of the process counts.
_ALLOWED = """
read 0 63, write 1 64, close 3 57, fstat 5 80, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66,
access 21 -, pipe 22 -, select 23 -, sched_yield 24 124, mremap 25 216, msync 26 227, mincore 27 232, madvise 28 233,
dup 32 23, dup2 33 -, pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172,
shutdown 48 210, exit 60 93, uname 63 160, flock 73 32, fsync 74 82, fdatasync 75 83, ftruncate 77 46, getdents 78 -,
getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -, creat 85 -, unlink 87 -,
readlink 89 -, umask 95 166, gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153,
getuid 102 174, getgid 104 176, geteuid 107 175, getegid 108 177, getppid 110 173, getpgrp 111 -, getgroups 115 158,
getresuid 118 148, getresgid 120 150, getpgid 121 155, getsid 124 156, rt_sigpending 127 136, rt_sigtimedwait 128 137,
rt_sigsuspend 130 133, sigaltstack 131 132, statfs 137 43, fstatfs 138 44, sched_getparam 143 121,
sched_getscheduler 145 120, sched_getaffinity 204 123, sched_get_priority_max 146 125, sched_get_priority_min 147 126,
arch_prctl 158 -, gettid 186 178, time 201 -, futex 202 98, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, set_tid_address 218 96, clock_gettime 228 113,
clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94, mkdirat 258 34, newfstatat 262 79, unlinkat 263 35,
renameat 264 38, renameat2 316 276, readlinkat 267 78, faccessat 269 48, faccessat2 439 439, pselect6 270 72, ppoll 271 73,
poll 7 -, set_robust_list 273 99, get_robust_list 274 100, eventfd 284 -, eventfd2 290 19, dup3 292 24, pipe2 293 59,
preadv 295 69, pwritev 296 70, preadv2 327 286, pwritev2 328 287, getrandom 318 278, membarrier 324 283, statx 332 291,
rseq 334 293, close_range 436 436, stat 4 -, lstat 6 -, timer_create 222 107, timer_settime 223 110, timer_gettime 224 108,
timer_getoverrun 225 109, timer_delete 226 111, timerfd_create 283 85, timerfd_settime 286 86, timerfd_gettime 287 87,
restart_syscall 219 128, getcpu 309 168, wait4 61 260, waitid 247 95, copy_file_range 326 285, sendto 44 206,
recvfrom 45 207, sendmsg 46 211, recvmsg 47 212, setsockopt 54 208, getsockopt 55 209, getsockname 51 204,
getpeername 52 205
"""

# Allowed with some arguments only: `rlhf_core.sandbox.seccomp` says which.
_CHECKED = """
socket 41 198, socketpair 53 199, clone 56 220, fcntl 72 25, ioctl 16 29, open 2 -, openat 257 56, prlimit64 302 261, tgkill 234 131,
kill 62 129, tkill 200 130
"""

# What no solution of a task needs and an attack does: the network, other processes, other programs, the kernel itself.
_FORBIDDEN = """
connect 42 203, bind 49 200, listen 50 201, accept 43 202, accept4 288 242, fork 57 -, vfork 58 -,
execve 59 221, execveat 322 281, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, pidfd_open 434 434,
pidfd_getfd 438 438, pidfd_send_signal 424 424, ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271,
process_madvise 440 440, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, setns 308 268, unshare 272 97,
bpf 321 280, perf_event_open 298 241, keyctl 250 219, add_key 248 217, request_key 249 218, userfaultfd 323 282,
io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, open_by_handle_at 304 265,
name_to_handle_at 303 264, init_module 175 105, finit_module 313 273, delete_module 176 106, kexec_load 246 104,
kexec_file_load 320 294, reboot 169 142, swapon 167 224, swapoff 168 225, settimeofday 164 170, clock_settime 227 112,
clock_adjtime 305 266, sethostname 170 161, fanotify_init 300 262, quotactl 179 60, acct 163 89, iopl 172 -, ioperm 173 -,
move_mount 429 429, open_tree 428 428, fsopen 430 430, fsmount 432 432, mount_setattr 442 442, setuid 105 146,
setgid 106 144, setresuid 117 147, setresgid 119 149, setreuid 113 145, setregid 114 143, setgroups 116 159, capset 126 91
"""

MACHINES = ("x86_64", "aarch64")


def _numbers(table: str, machine: str) -> dict[str, int]:
    rows = (row.split() for row in table.replace("\n", " ").split(","))
    column = 1 + MACHINES.index(machine)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def allowed(machine: str) -> Mapping[str, int]:
    """Calls that are always allowed."""
    return _numbers(_ALLOWED, machine)


def checked(machine: str) -> Mapping[str, int]:
    """Calls that are allowed with some arguments."""
    return _numbers(_CHECKED, machine)


def forbidden(machine: str) -> Mapping[str, int]:
    """Calls that end the process."""
    return _numbers(_FORBIDDEN, machine)
