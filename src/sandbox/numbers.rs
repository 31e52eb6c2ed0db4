//! The calls that nothing here makes, by their numbers on this architecture.

use linux_raw_sys::general as nr;

/// `AUDIT_ARCH_…` (`linux/audit.h`): the ELF machine, 64 bits, little-endian. `None`: no list was made for this one.
pub(super) const ARCHITECTURE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(62 | IS_64 | IS_LITTLE)
} else if cfg!(target_arch = "aarch64") {
    Some(183 | IS_64 | IS_LITTLE)
} else if cfg!(target_arch = "riscv64") {
    Some(243 | IS_64 | IS_LITTLE)
} else if cfg!(target_arch = "arm") {
    Some(40 | IS_LITTLE)
} else if cfg!(target_arch = "mips") {
    Some(8 | IS_LITTLE)
} else {
    None
};
const IS_64: u32 = 0x8000_0000;
const IS_LITTLE: u32 = 0x4000_0000;

/// Refused everywhere, by what they are for.
pub(super) const REFUSED: &[u32] = &[
    // Other programs: starting them, looking into them, ending them.
    nr::__NR_execve,
    nr::__NR_execveat,
    nr::__NR_ptrace,
    nr::__NR_process_vm_readv,
    nr::__NR_process_vm_writev,
    nr::__NR_process_madvise,
    nr::__NR_kcmp,
    nr::__NR_pidfd_getfd,
    nr::__NR_kill,
    nr::__NR_pidfd_send_signal,
    nr::__NR_rt_sigqueueinfo,
    nr::__NR_rt_tgsigqueueinfo,
    // What the file system looks like, and namespaces.
    nr::__NR_mount,
    nr::__NR_umount2,
    nr::__NR_pivot_root,
    nr::__NR_chroot,
    nr::__NR_mount_setattr,
    nr::__NR_move_mount,
    nr::__NR_open_tree,
    nr::__NR_open_tree_attr,
    nr::__NR_fsopen,
    nr::__NR_fsconfig,
    nr::__NR_fsmount,
    nr::__NR_fspick,
    nr::__NR_swapon,
    nr::__NR_swapoff,
    nr::__NR_quotactl,
    nr::__NR_quotactl_fd,
    nr::__NR_unshare,
    nr::__NR_setns,
    // Who we are.
    nr::__NR_setuid,
    nr::__NR_setgid,
    nr::__NR_setreuid,
    nr::__NR_setregid,
    nr::__NR_setresuid,
    nr::__NR_setresgid,
    nr::__NR_setgroups,
    nr::__NR_setfsuid,
    nr::__NR_setfsgid,
    nr::__NR_capset,
    // Whose files are whose, which Landlock doesn't rule.
    nr::__NR_fchmod,
    nr::__NR_fchmodat,
    nr::__NR_fchmodat2,
    nr::__NR_fchown,
    nr::__NR_fchownat,
    nr::__NR_mknodat,
    nr::__NR_setxattr,
    nr::__NR_lsetxattr,
    nr::__NR_fsetxattr,
    nr::__NR_setxattrat,
    nr::__NR_removexattr,
    nr::__NR_lremovexattr,
    nr::__NR_fremovexattr,
    nr::__NR_removexattrat,
    nr::__NR_file_setattr,
    nr::__NR_name_to_handle_at,
    nr::__NR_open_by_handle_at,
    nr::__NR_fanotify_init,
    // The kernel and the machine.
    nr::__NR_init_module,
    nr::__NR_finit_module,
    nr::__NR_delete_module,
    nr::__NR_kexec_load,
    nr::__NR_reboot,
    nr::__NR_bpf,
    nr::__NR_perf_event_open,
    nr::__NR_userfaultfd,
    nr::__NR_io_uring_setup,
    nr::__NR_io_uring_enter,
    nr::__NR_io_uring_register,
    nr::__NR_add_key,
    nr::__NR_request_key,
    nr::__NR_keyctl,
    nr::__NR_sethostname,
    nr::__NR_setdomainname,
    nr::__NR_settimeofday,
    nr::__NR_clock_settime,
    nr::__NR_clock_adjtime,
    nr::__NR_adjtimex,
    nr::__NR_personality,
    nr::__NR_acct,
    nr::__NR_syslog,
    nr::__NR_vhangup,
];

/// The same things by calls that only some architectures have.
#[cfg(target_arch = "x86_64")]
pub(super) const REFUSED_HERE: &[u32] = &[
    nr::__NR_fork,
    nr::__NR_vfork,
    nr::__NR_chmod,
    nr::__NR_chown,
    nr::__NR_lchown,
    nr::__NR_mknod,
    nr::__NR_kexec_file_load,
    nr::__NR_ioperm,
    nr::__NR_iopl,
    nr::__NR_modify_ldt,
];
#[cfg(target_arch = "arm")]
pub(super) const REFUSED_HERE: &[u32] = &[
    nr::__NR_fork,
    nr::__NR_vfork,
    nr::__NR_chmod,
    nr::__NR_chown,
    nr::__NR_lchown,
    nr::__NR_chown32,
    nr::__NR_lchown32,
    nr::__NR_fchown32,
    nr::__NR_mknod,
    nr::__NR_kexec_file_load,
    nr::__NR_setuid32,
    nr::__NR_setgid32,
    nr::__NR_setreuid32,
    nr::__NR_setregid32,
    nr::__NR_setresuid32,
    nr::__NR_setresgid32,
    nr::__NR_setgroups32,
    nr::__NR_setfsuid32,
    nr::__NR_setfsgid32,
    nr::__NR_clock_settime64,
    nr::__NR_clock_adjtime64,
];
#[cfg(target_arch = "mips")]
pub(super) const REFUSED_HERE: &[u32] = &[
    // These two make other calls, unseen.
    nr::__NR_syscall,
    nr::__NR_socketcall,
    nr::__NR_fork,
    nr::__NR_chmod,
    nr::__NR_chown,
    nr::__NR_lchown,
    nr::__NR_mknod,
    nr::__NR_umount,
    nr::__NR_stime,
    nr::__NR_clock_settime64,
    nr::__NR_clock_adjtime64,
];
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
pub(super) const REFUSED_HERE: &[u32] = &[nr::__NR_kexec_file_load];
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "arm",
    target_arch = "mips",
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
pub(super) const REFUSED_HERE: &[u32] = &[];

/// The newest call of Linux 6.17. What is behind it is newer than these lists, or x86_64's second numbering of all calls (x32).
pub(super) const LAST: u32 = nr::__NR_file_setattr;

/// 32-bit arm has calls of its own beyond, which its C libraries need.
pub(super) const LAST_UNKNOWN: u32 = if cfg!(target_arch = "arm") {
    0x000e_ffff
} else {
    u32::MAX
};
