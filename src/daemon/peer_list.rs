//! The list of peers that the control socket gives: the best of them, as many as an answer takes.
//!
//! A table has 200,000 addresses at most, and all of them in words would be a hundred megabytes: more than a client reads, and than
//! a router has.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::answers;
use super::forwarder::Forwarder;
use crate::control::messages::{MAX_LINE, ProxyEntry};
use crate::discovery::status::Status;
use crate::discovery::table::Row;

/// Known peers: by status, then score, then latency, then address. And how many there are behind them, which are left out.
pub(super) fn proxies(forwarder: &Forwarder, now: Instant) -> (Vec<ProxyEntry>, u64) {
    let discovery = forwarder.discovery.borrow();
    let selected = forwarder.remote().and_then(|(address, _)| address);
    let chosen = selected.and_then(|address| discovery.table.get(address, now));
    let (rows, behind) = best(discovery.table.snapshot(now), chosen.as_ref(), MOST_PEERS);
    let known = rows.len() as u64 + behind;
    let entries = rows.iter().map(|row| {
        let sources = row
            .sources
            .iter()
            .filter_map(|id| discovery.sources().get(id.number()))
            .map(|source| source.name.clone())
            .collect();
        let is_selected = selected == Some(row.address);
        ProxyEntry {
            why: forwarder.why(row, is_selected, chosen.as_ref(), now),
            ..answers::entry(row, sources, is_selected)
        }
    });
    let entries = fitting(entries, MOST_BYTES);
    let left_out = known.saturating_sub(entries.len() as u64);
    (entries, left_out)
}

/// The first `most` in the order of the list, and how many come behind them. The chosen one is among them. Twice as many are held at a
/// time.
fn best(rows: impl Iterator<Item = Row>, chosen: Option<&Row>, most: usize) -> (Vec<Row>, u64) {
    let mut kept = Vec::new();
    let mut behind = 0;
    let mut cut = |kept: &mut Vec<Row>| {
        kept.sort_unstable_by_key(place);
        behind += kept.len().saturating_sub(most) as u64;
        kept.truncate(most);
    };
    for row in rows {
        kept.push(row);
        if kept.len() >= most.saturating_mul(2) {
            cut(&mut kept);
        }
    }
    cut(&mut kept);
    // Whoever looks for the star finds it, however bad that one is.
    if let Some(chosen) = chosen
        && let Some(last) = kept.last_mut()
        && place(last) < place(chosen)
    {
        *last = *chosen;
    }
    (kept, behind)
}

fn place(row: &Row) -> (Status, Reverse<u32>, Duration, SocketAddr) {
    (
        row.status,
        Reverse(row.score.map_or(0, f32::to_bits)),
        row.latency.unwrap_or(Duration::MAX),
        row.address,
    )
}

/// Entries as long as there is room for their JSON: the name of a source may be a long command.
fn fitting(entries: impl Iterator<Item = ProxyEntry>, mut room: usize) -> Vec<ProxyEntry> {
    let mut fitting = Vec::new();
    for entry in entries {
        let length = serde_json::to_string(&entry).map_or(0, |text| text.len());
        // With its comma.
        match room.checked_sub(length + 1) {
            Some(rest) => room = rest,
            None => break,
        }
        fitting.push(entry);
    }
    fitting
}

/// Some 4 MiB of JSON, and three times as much memory while it is made.
const MOST_PEERS: usize = 10_000;

/// What a client reads, without what is around the list: an id is part of a request, and those have 64 KiB at most.
const MOST_BYTES: usize = MAX_LINE - (128 << 10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::rules::Rules;
    use crate::discovery::table::{SourceId, Table, TableSettings};

    fn at(number: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], number))
    }

    /// Unknown peers, in the wrong order.
    fn rows(count: u16) -> Vec<Row> {
        let now = Instant::now();
        let mut table = Table::new(TableSettings::default(), Rules::default(), now);
        let source = SourceId::new(0).unwrap();
        table.set_source(source, (1..=count).rev().map(at), now);
        table.snapshot(now).collect()
    }

    fn ports(rows: &[Row]) -> Vec<u16> {
        rows.iter().map(|row| row.address.port()).collect()
    }

    #[test]
    fn the_best_are_listed_and_the_others_counted() {
        for (known, most) in [(0, 3), (2, 3), (3, 3), (4, 3), (5, 3), (6, 3), (100, 7)] {
            let (kept, behind) = best(rows(known).into_iter(), None, usize::from(most));
            let expected: Vec<u16> = (1..=known.min(most)).collect();
            assert_eq!(ports(&kept), expected, "{known} of {most}");
            assert_eq!(behind, u64::from(known.saturating_sub(most)));
        }
    }

    #[test]
    fn the_one_in_use_is_always_listed() {
        let all = rows(10);
        for (chosen, expected) in [
            (1, [1, 2, 3]),
            (3, [1, 2, 3]),
            (4, [1, 2, 4]),
            (9, [1, 2, 9]),
        ] {
            let chosen = all.iter().find(|row| row.address == at(chosen));
            let (kept, behind) = best(all.iter().copied(), chosen, 3);
            assert_eq!((ports(&kept), behind), (expected.to_vec(), 7));
        }
        let first = all.iter().min_by_key(|row| place(row));
        assert_eq!(ports(&best(all.iter().copied(), first, 20).0).len(), 10);
    }

    #[test]
    fn long_names_of_sources_leave_less_room() {
        let entries = || {
            rows(9)
                .into_iter()
                .map(|row| answers::entry(&row, vec!["exec:\"".repeat(100)], false))
        };
        let whole = serde_json::to_string(&entries().collect::<Vec<_>>()).unwrap();
        // Of the brackets one is in the place of a comma.
        assert_eq!(fitting(entries(), whole.len() - 1).len(), 9);
        let part = fitting(entries(), whole.len() - 2);
        assert_eq!(part.len(), 8);
        assert!(serde_json::to_string(&part).unwrap().len() < whole.len());
    }
}
