//! `sockhop generate`: the manual page and shell completions, from the flags that argh parses. For packagers; a router needs neither.

mod bash;
mod fish;
mod man;
mod outline;
mod zsh;

use argh::{ArgsInfo, FromArgs};

use self::outline::Outline;
use super::{Failure, Program, output};

/// Print the manual page, or completions for a shell.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "generate",
    help_triggers("-h", "--help"),
    example = "\
sockhop generate man > /usr/local/share/man/man1/sockhop.1
sockhop generate completions bash \\
  > /usr/local/share/bash-completion/completions/sockhop
sockhop generate completions zsh \\
  > /usr/local/share/zsh/site-functions/_sockhop
sockhop generate completions fish \\
  > /usr/local/share/fish/vendor_completions.d/sockhop.fish"
)]
pub(super) struct Generate {
    /// man or completions
    #[argh(positional, arg_name = "man|completions")]
    what: String,

    /// with completions: the shell
    #[argh(positional, arg_name = "bash|zsh|fish")]
    shell: Option<String>,
}

impl Generate {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let program = Program::get_args_info();
        let outline = Outline::of(&program, |command| super::help::of(&program, command));
        let text = match (self.what.as_str(), self.shell.as_deref()) {
            ("man", None) => man::page(&outline, &man::date()),
            ("completions", Some("bash")) => bash::completions(&outline),
            ("completions", Some("zsh")) => zsh::completions(&outline),
            ("completions", Some("fish")) => fish::completions(&outline),
            ("completions", Some(shell)) => {
                let what =
                    format!("{shell:?} is not a shell that is known; right would be {SHELLS}");
                return Err(Failure::usage(what, Some(NAME)));
            }
            ("completions", None) => {
                let what = format!("for which shell? right would be completions {SHELLS}");
                return Err(Failure::usage(what, Some(NAME)));
            }
            ("man", Some(more)) => {
                let what = format!("{more:?} is one word too many after man");
                return Err(Failure::usage(what, Some(NAME)));
            }
            (what, _) => {
                let what = format!("{what:?} is neither man nor completions");
                return Err(Failure::usage(what, Some(NAME)));
            }
        };
        output::print(&text)
    }
}

const NAME: &str = "generate";
const SHELLS: &str = "bash, zsh or fish";
