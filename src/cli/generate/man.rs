//! The manual page sockhop(1), in the macros of man(7), which groff and mandoc both know.

use std::env;
use std::time::{Duration, SystemTime};

use super::outline::{Entry, Flag, Outline, Positional};

/// `date` is the day that stands at its foot.
pub(super) fn page(outline: &Outline, date: &str) -> String {
    let mut page = Page::default();
    page.line(&format!(
        ".TH SOCKHOP 1 {date} \"sockhop {}\" \"User Commands\"",
        escape(env!("CARGO_PKG_VERSION"))
    ));
    page.line(".SH NAME");
    page.text(
        "sockhop - find SOCKS proxies on an overlay network and forward a local port to the best",
    );

    page.line(".SH SYNOPSIS");
    for (at, entry) in outline.commands.iter().enumerate() {
        if at > 0 {
            page.line(".br");
        }
        page.synopsis(entry);
    }

    page.line(".SH DESCRIPTION");
    for (at, paragraph) in DESCRIPTION.iter().enumerate() {
        if at > 0 {
            page.line(".PP");
        }
        page.text(paragraph);
    }
    page.line(".PP");
    page.text("Options of the program itself, which every command takes too:");
    for flag in &outline.program.flags {
        page.flag(flag);
    }
    page.line(".PP");
    page.text(
        "Options are written \"--flag value\" or \"--flag=value\", and single letters may be joined. After \"--\" there are no more of them.",
    );
    for paragraph in &outline.program.notes {
        page.line(".PP");
        page.text(paragraph);
    }

    page.line(".SH COMMANDS");
    for entry in &outline.commands {
        page.command(entry);
    }

    page.line(".SH EXIT STATUS");
    for (status, text) in &outline.program.statuses {
        page.tagged(&format!("\\fB{status}\\fR"), text);
    }
    page.line(".PP");
    page.text("Where a command has statuses of its own, they stand with it.");

    page.line(".SH ENVIRONMENT");
    for (name, text) in ENVIRONMENT {
        page.tagged(&format!("\\fB{}\\fR", escape(name)), text);
    }

    page.line(".SH FILES");
    for (name, text) in FILES {
        page.tagged(&format!("\\fI{}\\fR", escape(name)), text);
    }

    page.line(".SH SIGNALS");
    for (name, text) in SIGNALS {
        page.tagged(&format!("\\fB{name}\\fR"), text);
    }

    page.line(".SH EXAMPLES");
    for example in outline.program.examples {
        page.example(example);
    }

    page.line(".SH SEE ALSO");
    page.line(".BR curl (1),");
    page.line(".BR ssh_config (5)");
    page.line(".PP");
    page.text("RFC 1928 (SOCKS 5), RFC 1929 (its user and password), draft-olteanu-intarea-socks-6-12 (SOCKS 6).");
    page.out
}

/// Today, or the day of SOURCE_DATE_EPOCH, so that a package is the same whenever it is built.
pub(super) fn date() -> String {
    let told = env::var("SOURCE_DATE_EPOCH").ok();
    let told = told.and_then(|text| text.parse().ok());
    let told = told.filter(|seconds| *seconds <= LAST_SECOND);
    let told = told.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let day = humantime::format_rfc3339_seconds(told.unwrap_or_else(SystemTime::now)).to_string();
    day.split('T').next().unwrap_or_default().to_owned()
}

#[derive(Default)]
struct Page {
    out: String,
}

impl Page {
    /// A line of markup, or of text that is one already.
    fn line(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }

    /// Prose. A sentence starts on a line of its own, as roff wants it for the space between them.
    fn text(&mut self, text: &str) {
        let mut line = String::new();
        for word in text.split_whitespace() {
            let ends_sentence = line.ends_with('.');
            let escaped = escape(word);
            if !line.is_empty() && (ends_sentence || line.len() + 1 + escaped.len() > WIDTH) {
                self.line(&line);
                line.clear();
            }
            line += match line.as_str() {
                "" => guard(word),
                _ => " ",
            };
            line += &escaped;
        }
        self.line(&line);
    }

    /// A paragraph under a tag, which is markup.
    fn tagged(&mut self, tag: &str, text: &str) {
        self.line(".TP");
        self.line(tag);
        self.text(text);
    }

    fn synopsis(&mut self, entry: &Entry) {
        self.line(&format!(
            "\\fBsockhop {}\\fR {}",
            escape(entry.name),
            escape(&entry.usage)
        ));
    }

    fn command(&mut self, entry: &Entry) {
        self.line(&format!(".SS \"sockhop {}\"", escape(entry.name)));
        self.synopsis(entry);
        self.line(".PP");
        self.text(entry.description);
        for positional in &entry.positionals {
            self.positional(positional);
        }
        for flag in &entry.flags {
            self.flag(flag);
        }
        for paragraph in &entry.notes {
            self.line(".PP");
            self.text(paragraph);
        }
        if !entry.statuses.is_empty() {
            self.line(".PP");
            self.text("Exit status:");
            for (status, text) in &entry.statuses {
                self.tagged(&format!("\\fB{status}\\fR"), text);
            }
        }
        if !entry.examples.is_empty() {
            self.line(".PP");
            self.text("Examples:");
        }
        for example in entry.examples {
            self.line(".PP");
            self.example(example);
        }
    }

    fn positional(&mut self, positional: &Positional) {
        let mut tag = format!("\\fI{}\\fR", escape(positional.name));
        if positional.repeats {
            tag += "...";
        }
        if positional.optional {
            tag = format!("[{tag}]");
        }
        self.tagged(&tag, &capitalized(positional.text));
    }

    fn flag(&mut self, flag: &Flag) {
        let mut tag = String::new();
        if let Some(short) = flag.short {
            tag += &format!("\\fB\\-{short}\\fR, ");
        }
        tag += &format!("\\fB{}\\fR", escape(flag.long));
        if let Some(value) = &flag.value {
            tag += &format!(" \\fI{}\\fR", escape(&value.name));
        }
        let mut text = capitalized(&flag.text);
        if !text.ends_with('.') {
            text.push('.');
        }
        if flag.repeats && flag.value.is_some() {
            text += " May be given more than once.";
        }
        self.tagged(&tag, &text);
    }

    /// Lines as they are typed.
    fn example(&mut self, example: &str) {
        self.line(".RS 4");
        self.line(".nf");
        for line in example.lines() {
            self.line(&format!("{}{}", guard(line), escape(line)));
        }
        self.line(".fi");
        self.line(".RE");
    }
}

/// Text in which nothing means anything to roff, and every character stays the one that is typed: roff makes typographic ones of some.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '"' => out.push_str("\\(dq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            other => out.push(other),
        }
    }
    out
}

/// What a line needs before it, so that it is not taken for a macro.
fn guard(line: &str) -> &'static str {
    match line.starts_with(['.', '\'']) {
        true => "\\&",
        false => "",
    }
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// Of the year 9999, beyond which a date has no usual form.
const LAST_SECOND: u64 = 253_402_300_799;

/// mandoc finds longer lines of input bad style.
const WIDTH: usize = 80;

const DESCRIPTION: [&str; 3] = [
    "sockhop brings the internet (or any network) behind SOCKS proxies on an overlay network, such as Mycelium, Yggdrasil, Tailscale or \
     WireGuard, to the machine or router it runs on. It finds SOCKS5 proxies among the peers of the overlay, picks a good one, and \
     forwards a local port to it. When that one dies, the next connection goes to the next.",
    "It is also the other end, a SOCKS 4, 4a, 5 and 6 server (sockhop serve), and a client (sockhop dial).",
    "A running forwarder or server is asked and steered over its control socket: sockhop status, proxies, connect, disconnect and \
     probing. Root and the user that it runs as may do that.",
];

const ENVIRONMENT: [(&str, &str); 9] = [
    (
        "SOCKHOP_REMOTE",
        "A proxy for sockhop forward, when there is no --remote. Others on this machine cannot read a password there, as they can on the \
         command line.",
    ),
    (
        "SOCKHOP_USER",
        "NAME:PASSWORD of one more user of sockhop serve.",
    ),
    (
        "SOCKHOP_VIA",
        "A proxy that sockhop serve connects through, when there is no --via.",
    ),
    (
        "all_proxy, ALL_PROXY",
        "The proxy of sockhop dial, when none is given.",
    ),
    (
        "no_proxy, NO_PROXY",
        "Hosts that sockhop dial then connects to without a proxy.",
    ),
    (
        "XDG_RUNTIME_DIR",
        "The folder of the control socket, unless --control says where it is.",
    ),
    (
        "RUST_LOG",
        "What is logged, whatever --log-level says: a level, or one for each part, as in warn,sockhop::discovery=debug.",
    ),
    (
        "LISTEN_FDS",
        "systemd hands sockets over with it: they take the place of --listen and --control.",
    ),
    (
        "NOTIFY_SOCKET, WATCHDOG_USEC",
        "systemd is told there of readiness, status and end, and that the program lives.",
    ),
];

const FILES: [(&str, &str); 3] = [
    (
        "/run/sockhop.sock",
        "The control socket where XDG_RUNTIME_DIR is not set.",
    ),
    (
        "/etc/sockhop.peers",
        "A usual place for --peers file:PATH: one address a line, which may be a URI with user and password; # starts a comment.",
    ),
    (
        "/etc/sockhop.users",
        "A usual place for --users-file PATH: one name:password a line.",
    ),
];

const SIGNALS: [(&str, &str); 3] = [
    ("SIGTERM, SIGINT", "End sockhop forward and sockhop serve."),
    (
        "SIGHUP",
        "sockhop forward reads its peers again, sockhop serve its users; both do so as well when a file changes.",
    ),
    ("SIGUSR1", "Says in the log how things are."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        assert_eq!(escape(".x \\n 'a' --b"), ".x \\en \\(aqa\\(aq \\-\\-b");
        assert_eq!(guard(".x"), "\\&");
        assert_eq!(guard("'x"), "\\&");
        assert_eq!(guard("x.'"), "");
    }

    #[test]
    fn each_sentence_has_a_line_and_none_is_long() {
        let mut page = Page::default();
        page.text("One. Two\nthree. .four");
        assert_eq!(page.out, "One.\nTwo three.\n\\&.four\n");
        page.text(&"word ".repeat(100));
        assert!(page.out.lines().all(|line| line.len() <= WIDTH));
    }
}
