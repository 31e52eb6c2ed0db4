//! What sessions found out about remotes, brought to the table.

use std::time::Duration;

use super::Forwarder;
use crate::discovery::status::{Finding, Stage};
use crate::engine::Cx;
use crate::forward::{Awaited, DialFailure, Report};

impl Forwarder {
    /// Takes in what sessions found out about remotes: a failure counts at once.
    pub(super) fn take_reports(&mut self, cx: &mut Cx<'_>) {
        self.take_successes();
        let reports = self.route.take_reports(REPORTS_A_TURN);
        if reports.len() == REPORTS_A_TURN {
            cx.wake(self.steering);
        }
        for Report {
            remote,
            started,
            failure,
        } in reports
        {
            // An unreachable destination is no error of ours or the remote's, and slow is not wrong.
            if !matches!(failure, DialFailure::Replied(_) | DialFailure::Hesitated) {
                self.note_error(format!("remote {remote}: {failure}"));
            }
            let mut discovery = self.discovery.borrow_mut();
            let table = &mut discovery.table;
            let distrusted = table.is_distrusted(remote);
            match &failure {
                DialFailure::Replied(_) => table.live_refusal(remote, started, cx.now),
                // It may be well and far away, or gone: a probe has the time to find out.
                DialFailure::Hesitated => table.probe_soon(remote, cx.now),
                _ => {}
            }
            if let Some(finding) = finding_of(&failure)
                && let Some(change) = table.live_failure(remote, finding.reason(), started, cx.now)
            {
                log::info!(
                    "peer {remote}: {} ({}) for a client, was {}",
                    change.to,
                    change.reason,
                    change.from
                );
            }
            if !distrusted && table.is_distrusted(remote) {
                log::info!(
                    "peer {remote}: failed several clients in a row, comes after all others for now"
                );
            }
            discovery.wake_prober(cx);
        }
    }

    /// Before the failures: one may have waited here for a while, and would make good a failure that came after it.
    fn take_successes(&mut self) {
        let mut discovery = self.discovery.borrow_mut();
        if let Some(answer) = self.route.last_answer()
            && self.answer_seen != Some(answer.at)
        {
            self.answer_seen = Some(answer.at);
            discovery
                .table
                .live_success(answer.remote, answer.took, answer.at);
        }
        if let Some((remote, at)) = self.route.last_served()
            && self.served_seen != Some(at)
        {
            self.served_seen = Some(at);
            if discovery.table.live_served(remote, at) {
                log::info!("peer {remote}: served a client, is trusted again");
            }
        }
    }
}

/// What a failed connection says about the remote; nothing if the fault is here.
fn finding_of(failure: &DialFailure) -> Option<Finding> {
    use crate::discovery::status::{FirstBytes, Phase, Reason};
    Some(match failure {
        DialFailure::Local(_) | DialFailure::Replied(_) | DialFailure::Hesitated => return None,
        DialFailure::Connect(error) => {
            Finding::from_error(error, Stage::Connecting, Duration::ZERO)
        }
        DialFailure::Reset(_, error) => {
            Finding::from_error(error, Stage::Established, Duration::ZERO)
        }
        DialFailure::ConnectTimedOut => Finding::timed_out(Phase::Connecting),
        DialFailure::Silent(Awaited::Reply) => Finding::timed_out(Phase::Target),
        DialFailure::Silent(_) => Finding::timed_out(Phase::Greeting),
        DialFailure::NoProxy(answer) => {
            let reason = match answer.as_slice() {
                // Without having been offered it: see the probe.
                [5, 0, ..] => Reason::Sent(FirstBytes::new(answer)),
                [5, method, ..] => Reason::Answered(*method),
                other => Reason::Sent(FirstBytes::new(other)),
            };
            Finding::answered(reason, Duration::ZERO)
        }
        DialFailure::LoginRejected => Finding::answered(Reason::LoginRejected, Duration::ZERO),
        DialFailure::Outdone(code) => {
            Finding::answered(Reason::RequestRefused(code.0), Duration::ZERO)
        }
        DialFailure::ClosedEarly(_) => Finding::answered(Reason::ClosedEarly(0), Duration::ZERO),
    })
}

/// Reports taken in before other tasks get their turn.
const REPORTS_A_TURN: usize = 256;
