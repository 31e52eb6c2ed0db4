//! How much memory there is, and what it is for.
//!
//! Nothing here is taken: it is known beforehand what connections, threads and bytes on their way may need together, and no more of
//! them are let in. Out of memory there is no answer left to give: an allocation that fails ends the process, and so does the
//! kernel's choice of a victim. So half of what is there stays for the kernel's buffers and for other programs.

/// How a process's memory is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBudget {
    /// What there is, in bytes. `None`: nobody said.
    pub total: Option<u64>,
    /// Connections from clients, each with a second one to a remote.
    pub connections: usize,
    /// Threads that move bytes, each with a stack and a buffer.
    pub workers: usize,
    /// Pipes for splice(2), each with as much in it as it can hold.
    pub pipes: usize,
    /// Bytes that all slow readers together may leave in buffers of ours.
    pub kept: usize,
}

/// What may still be taken, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    /// In this process: its address space and data.
    own: u64,
    /// Of the machine or the control group, where what the kernel takes for our sockets and pipes counts too.
    all: u64,
}

impl MemoryBudget {
    /// Shares out what this process may take of this machine's memory: what the machine has free, what its control groups leave
    /// it, and its own limits (RLIMIT_AS, RLIMIT_DATA).
    #[must_use]
    pub fn of_this_process() -> Self {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        return Self::share(linux::room());
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        return Self::share(Room::ENDLESS);
    }

    fn share(room: Room) -> Self {
        let least = room.own.min(room.all);
        let count = |bytes: u64, each: u64| usize::try_from(bytes / each).unwrap_or(usize::MAX);
        let connections =
            (room.own / 2 / OWN_OF_A_CONNECTION).min(room.all / 2 / ALL_OF_A_CONNECTION);
        Self {
            total: (least < u64::MAX).then_some(least),
            connections: count(connections, 1).max(FEWEST_CONNECTIONS),
            workers: count(least / 4, OF_A_WORKER).max(FEWEST_WORKERS),
            pipes: count(room.all / 8, OF_A_PIPE).max(1),
            kept: count(least / 8, 1),
        }
    }
}

impl Room {
    const ENDLESS: Self = Self {
        own: u64::MAX,
        all: u64::MAX,
    };
}

/// A connection while it is made: its session, what it has said, an entry in the reactor. Idle it is 1 KiB with musl; glibc's heap
/// was seen to keep 5 KiB.
const OWN_OF_A_CONNECTION: u64 = 8 * 1024;

/// The same with two sockets in the kernel, which take 7 KiB empty, and some bytes in their buffers.
const ALL_OF_A_CONNECTION: u64 = 16 * 1024;

/// A stack and a copy buffer.
const OF_A_WORKER: u64 = 192 * 1024;

/// What a pipe is asked to hold.
const OF_A_PIPE: u64 = 256 * 1024;

/// However little there is: some clients are served, if only for the message about the next one.
const FEWEST_CONNECTIONS: usize = 16;

/// One carries bulk, another one short messages.
const FEWEST_WORKERS: usize = 2;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use std::fs;
    use std::path::Path;

    use rustix::process::{Resource, getrlimit};
    use rustix::thread::sched_getaffinity;

    use super::Room;

    pub(super) fn room() -> Room {
        let limits = [Resource::As, Resource::Data].map(|limit| getrlimit(limit).current);
        room_under(Path::new("/"), limits)
    }

    /// With the files of `/proc` and `/sys` below `root`, and the limits of address space and data. What cannot be read is no
    /// limit.
    pub(super) fn room_under(root: &Path, [address_space, data]: [Option<u64>; 2]) -> Room {
        let status = read(root, "proc/self/status");
        let left = |limit: Option<u64>, used: &str| {
            limit.map(|limit| limit.saturating_sub(kib(&status, used).unwrap_or(0)))
        };
        let space = left(address_space, "VmSize:").map(beside_heaps);
        let own = [space, left(data, "VmData:")];
        let meminfo = read(root, "proc/meminfo");
        let machine = kib(&meminfo, "MemTotal:").map(|total| {
            let free = kib(&meminfo, "MemAvailable:").unwrap_or(0);
            free.max(total / SURE)
        });
        let own = own.into_iter().flatten().min().unwrap_or(Room::ENDLESS.own);
        let all = groups(root).into_iter().chain(machine).min();
        Room {
            own,
            all: all.unwrap_or(Room::ENDLESS.all),
        }
    }

    /// Where every thread has a heap of its own, of a size that is reserved at once, most of the address space may be gone for that.
    fn beside_heaps(space: u64) -> u64 {
        if !cfg!(all(target_env = "gnu", target_pointer_width = "64")) {
            return space;
        }
        // As glibc counts them; what std has for it looks at control groups too, and adds 13 KB.
        let cores = sched_getaffinity(None).map_or(1, |cores| u64::from(cores.count()));
        let rest = space.saturating_sub(HEAPS_A_CORE * cores * HEAP);
        rest.max(space.min(HEAP / 4))
    }

    /// What each control group that this process is in leaves it.
    fn groups(root: &Path) -> Vec<u64> {
        let mut left = Vec::new();
        for line in read(root, "proc/self/cgroup").lines() {
            // proc_pid_cgroup(5), `hierarchy:controllers:path`. The unified hierarchy has no controllers in it.
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let (mount, limit, usage) = match controllers {
                "" => ("sys/fs/cgroup", "memory.max", "memory.current"),
                _ if controllers.split(',').any(|name| name == "memory") => (
                    "sys/fs/cgroup/memory",
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                ),
                _ => continue,
            };
            // Groups above limit those below. In a container the path may be that of the host, of which only the top is there.
            let path = Path::new(path.trim_start_matches('/'));
            for group in path.ancestors().take(DEEPEST) {
                let group = root.join(mount).join(group);
                let number = |file| read(&group, file).trim().parse::<u64>().ok();
                // "max" and the number of the first version that means the same are no limits.
                if let Some(limit) = number(limit).filter(|limit| *limit < 1 << 60) {
                    let used = number(usage).unwrap_or(0);
                    left.push(limit.saturating_sub(used).max(limit / SURE));
                }
            }
        }
        left
    }

    fn read(root: &Path, file: &str) -> String {
        fs::read_to_string(root.join(file)).unwrap_or_default()
    }

    /// The value of a line such as `MemTotal:  61234 kB`, in bytes.
    fn kib(text: &str, name: &str) -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let number: u64 = line.split_whitespace().next()?.parse().ok()?;
        number.checked_mul(1024)
    }

    /// A quarter of it all is counted on even if less is free now: at boot, others take much for a moment, and a good part of what
    /// is used are files, which give way.
    const SURE: u64 = 4;

    /// Control groups inside each other that are looked at.
    const DEEPEST: usize = 32;

    /// glibc's `HEAP_MAX_SIZE`, and its default limit of heaps (mallopt(3), `M_ARENA_MAX`).
    const HEAP: u64 = 64 << 20;
    const HEAPS_A_CORE: u64 = 8;
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::linux::room_under;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn room(files: &[(&str, &str)], limits: [Option<u64>; 2]) -> Room {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            write(root.path(), file, text);
        }
        room_under(root.path(), limits)
    }

    #[test]
    fn without_a_word_from_anybody_memory_is_no_limit() {
        assert_eq!(room(&[], [None, None]), Room::ENDLESS);
        let budget = MemoryBudget::share(Room::ENDLESS);
        assert_eq!(budget.total, None);
        assert!(budget.connections > 1 << 20 && budget.workers > 1024);
    }

    #[test]
    fn own_limits_leave_what_is_not_used_yet() {
        let status = (
            "proc/self/status",
            "Name:\tx\nVmSize:\t 4096 kB\nVmData:\t  1024 kB\n",
        );
        let limits = [Some(16 * MIB), None];
        assert_eq!(room(&[status], limits).own, 12 * MIB);
        let limits = [Some(16 * MIB), Some(8 * MIB)];
        assert_eq!(room(&[status], limits).own, 7 * MIB);
        assert_eq!(room(&[status], [Some(MIB), None]).own, 0);
        // Without /proc nothing is known of what is used.
        assert_eq!(room(&[], limits).own, 8 * MIB);
    }

    #[test]
    fn heaps_of_threads_take_address_space() {
        let all = room(&[], [Some(1 << 50), None]).own;
        let heaps = (1 << 50) - all;
        if cfg!(all(target_env = "gnu", target_pointer_width = "64")) {
            assert!(heaps >= 512 * MIB, "{heaps}");
            assert_eq!(room(&[], [Some(100 * MIB), None]).own, 16 * MIB);
        } else {
            assert_eq!(heaps, 0);
        }
    }

    #[test]
    fn the_machine_leaves_what_is_free_and_a_quarter_for_sure() {
        let free = |kib: u64| {
            let text = format!("MemTotal: 65536 kB\nMemFree: 1 kB\nMemAvailable: {kib} kB\n");
            room(&[("proc/meminfo", &text)], [None, None]).all
        };
        assert_eq!(free(40 * 1024), 40 * MIB);
        assert_eq!(free(1024), 16 * MIB);
    }

    #[test]
    fn the_narrowest_control_group_counts() {
        let own = ("proc/self/cgroup", "0::/a/b\n");
        let files = [
            own,
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/memory.current", "4194304\n"),
            ("sys/fs/cgroup/a/memory.max", "25165824\n"),
            ("sys/fs/cgroup/a/memory.current", "4194304\n"),
            ("sys/fs/cgroup/memory.max", "1073741824\n"),
        ];
        assert_eq!(room(&files, [None, None]).all, 20 * MIB);
        // In a container: the path of the host is not there, the top is the group.
        let files = [own, ("sys/fs/cgroup/memory.max", "25165824\n")];
        assert_eq!(room(&files, [None, None]).all, 24 * MIB);
    }

    #[test]
    fn control_groups_of_the_first_version_count_too() {
        let files = [
            ("proc/self/cgroup", "9:cpu:/x\n4:hugetlb,memory:/x\n0::/\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "25165824\n"),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "25000000\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
        ];
        assert_eq!(room(&files, [None, None]).all, 6 * MIB);
    }

    #[test]
    fn shares_stay_below_what_there_is() {
        for mib in [4, 8, 24, 64, 128, 1024] {
            let all = mib * MIB;
            for room in [
                Room { own: u64::MAX, all },
                Room {
                    own: all,
                    all: u64::MAX,
                },
            ] {
                let share = MemoryBudget::share(room);
                let own = share.connections as u64 * OWN_OF_A_CONNECTION
                    + share.workers as u64 * OF_A_WORKER
                    + share.kept as u64;
                assert!(own <= all, "{mib} MiB: {share:?}");
                assert!(share.connections as u64 >= 32 * mib, "{mib} MiB: {share:?}");
                assert_eq!(share.total, Some(all));
            }
        }
        let little = MemoryBudget::share(Room { own: 0, all: 0 });
        assert_eq!(
            (little.connections, little.workers, little.pipes),
            (16, 2, 1)
        );
    }
}
