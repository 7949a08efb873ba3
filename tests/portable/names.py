"""What Windows has of the names that Python's documentation says not every system has."""

from __future__ import annotations

# ``os`` of Python 3.11 to 3.13 on Windows; all else of it is of Unix alone.
_OS = """
    DirEntry F_OK GenericAlias Mapping MutableMapping O_APPEND O_BINARY O_CREAT O_EXCL
    O_NOINHERIT O_RANDOM O_RDONLY O_RDWR O_SEQUENTIAL O_SHORT_LIVED O_TEMPORARY O_TEXT O_TRUNC
    O_WRONLY P_DETACH P_NOWAIT P_NOWAITO P_OVERLAY P_WAIT PathLike R_OK SEEK_CUR SEEK_END
    SEEK_SET TMP_MAX W_OK X_OK abc abort access add_dll_directory altsep chdir chmod close
    closerange cpu_count curdir defpath device_encoding devnull dup dup2 environ error execl
    execle execlp execlpe execv execve execvp execvpe extsep fdopen fsdecode fsencode fspath
    fstat fsync ftruncate get_exec_path get_handle_inheritable get_inheritable get_terminal_size
    getcwd getcwdb getenv getlogin getpid getppid isatty kill linesep link listdir lseek lstat
    makedirs mkdir name open pardir path pathsep pipe popen putenv read readlink remove
    removedirs rename renames replace rmdir scandir sep set_handle_inheritable set_inheritable
    spawnl spawnle spawnv spawnve st startfile stat stat_result statvfs_result strerror
    supports_bytes_environ supports_dir_fd supports_effective_ids supports_fd
    supports_follow_symlinks symlink sys system terminal_size times times_result truncate umask
    uname_result unlink unsetenv urandom utime waitpid waitstatus_to_exitcode walk write
"""
OS = frozenset(_OS.split())
_MMAP = """
    ACCESS_COPY ACCESS_DEFAULT ACCESS_READ ACCESS_WRITE ALLOCATIONGRANULARITY PAGESIZE error
    mmap
"""
MMAP = frozenset(_MMAP.split())
_SIGNAL = """
    CTRL_BREAK_EVENT CTRL_C_EVENT Handlers NSIG SIGABRT SIGBREAK SIGFPE SIGILL SIGINT SIGSEGV
    SIGTERM SIG_DFL SIG_IGN Signals default_int_handler getsignal raise_signal set_wakeup_fd
    signal strsignal valid_signals
"""
SIGNAL = frozenset(_SIGNAL.split())
_ONLY_LINUX = """
    O_PATH O_TMPFILE copy_file_range eventfd getrandom getresuid memfd_create pidfd_open pipe2
    posix_fadvise posix_fallocate sched_getaffinity sched_setaffinity splice
"""
ONLY_LINUX = frozenset(_ONLY_LINUX.split())
"""Names of ``os`` that macOS does not have."""
_MODULES = """
    crypt fcntl grp nis posix pty pwd readline resource syslog termios tty _posixsubprocess
"""
MODULES = frozenset(_MODULES.split())
"""Modules that Windows does not have."""
WINDOWS = {"os": OS, "mmap": MMAP, "signal": SIGNAL}
