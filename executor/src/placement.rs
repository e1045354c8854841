//! Who runs where: as many executors as there are CPUs to use, partition p on executor p mod N (D1).

/// One executor per partition and one for the system partition is the most that makes sense.
pub const EXECUTORS_MAX: usize = 17;

/// CPUs this process may run on, from its affinity mask; empty where that cannot be read.
pub fn allowed_cpus() -> Vec<usize> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("");
    parse_cpu_list(list.trim())
}

fn parse_cpu_list(list: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in list.split(',').filter(|p| !p.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<usize>(), to.parse::<usize>()) {
            cpus.extend(from..=to);
        }
    }
    cpus
}

/// How many executors to start: what was asked for, or one per CPU that mask and limits leave.
pub fn executors(asked: usize) -> usize {
    let usable = std::thread::available_parallelism().map_or(1, |n| n.get());
    let n = if asked == 0 { usable } else { asked };
    n.clamp(1, EXECUTORS_MAX)
}

/// Keeps the calling thread on one CPU.
pub fn pin_thread(cpu: usize) -> std::io::Result<()> {
    crate::ring::sys::set_affinity(cpu)
}

/// The executor that owns a partition.
pub fn home_of(partition: u8, executors: usize) -> usize {
    usize::from(partition) % executors
}

/// The CPU of an executor, where there is one for each; with fewer CPUs than executors nobody is pinned.
pub fn cpu_of(executor: usize, executors: usize, cpus: &[usize]) -> Option<usize> {
    if executors <= cpus.len() { cpus.get(executor).copied() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_cpu_list("0-2,5,7-8"), vec![0, 1, 2, 5, 7, 8]);
        assert_eq!(parse_cpu_list(""), Vec::<usize>::new());
    }

    #[test]
    fn partitions_are_spread_and_pinning_degrades() {
        assert_eq!((0..5).map(|p| home_of(p, 2)).collect::<Vec<_>>(), vec![0, 1, 0, 1, 0]);
        assert_eq!(cpu_of(1, 2, &[4, 6]), Some(6));
        assert_eq!(cpu_of(1, 5, &[4, 6]), None);
        assert_eq!(executors(40), EXECUTORS_MAX);
    }
}
