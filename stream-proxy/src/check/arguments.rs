//! The command line of `tidings-proxy check`: that of the proxy, and what is checked besides.

use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::cli::{Cli, spread_variables};

/// The first argument that asks for a check.
const WORD: &str = "check";

/// Looks at everything that must be right before events arrive, in order, and says how to mend what is not.
/// The exit status is 1 if something must be mended.
#[derive(Debug, Parser)]
#[command(name = "tidings-proxy check", version, max_term_width = 110)]
pub struct Arguments {
    /// The proxy's own settings.
    #[command(flatten)]
    pub cli: Cli,

    /// Topics that somebody wants to subscribe to: is there a watch that makes them, and a rule?
    #[arg(value_name = "TOPIC")]
    pub topics: Vec<String>,

    /// A file with a token, - for standard input: is it valid, and may it subscribe to the topics?
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

impl Arguments {
    /// What is to be checked, if the command line asks for a check; exits with a message if it is not valid.
    pub fn read() -> Option<Self> {
        let mut args: Vec<_> = std::env::args_os().collect();
        if args.get(1).is_none_or(|word| word != WORD) {
            return None;
        }
        args.remove(1);
        // How access is decided is one of the things that are checked.
        let command = Self::command().mut_group("access", |group| group.required(false));
        let command = spread_variables(command, &mut args, |name| std::env::var(name).ok());
        let matches = command.get_matches_from(args);
        Some(Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        assert!(Arguments::command().get_groups().any(|group| group.get_id() == "access"));
    }
}
