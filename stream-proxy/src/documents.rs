//! What a package needs besides the binary, made from the command line itself, so that it is never older:
//! `tidings-proxy print conf`, and likewise `man`, `bash`, `zsh` and `fish`.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::{ArgAction, Command, CommandFactory};
use clap_complete::{Shell, generate};

use crate::cli::Cli;

/// The first argument that asks for a document.
const WORD: &str = "print";

/// Prints the document that the command line asks for, if it asks for one. `false` if there is no such document.
pub fn print() -> Option<io::Result<bool>> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != WORD {
        return None;
    }
    let name = args.next().unwrap_or_default();
    Some(write(name.to_str().unwrap_or_default()))
}

fn write(name: &str) -> io::Result<bool> {
    let (mut command, mut text) = (Cli::command(), Vec::new());
    match name {
        "conf" => text = configuration(&command).into_bytes(),
        "man" => clap_mangen::Man::new(command).section("8").render(&mut text)?,
        "bash" | "zsh" | "fish" => {
            let shell = name.parse::<Shell>().map_err(io::Error::other)?;
            generate(shell, &mut command, "tidings-proxy", &mut text);
        }
        _ => return Ok(false),
    }
    io::stdout().write_all(&text)?;
    Ok(true)
}

/// A file of environment variables, as systemd reads it: every setting with its meaning and its default, commented out.
fn configuration(command: &Command) -> String {
    let mut text = String::from(
        "# The settings of tidings-proxy: environment variables, which the systemd unit reads. `tidings-proxy --help` has\n\
         # the same as flags. Lines that begin with # are defaults or examples. TIDINGS_DATABASE_URL is needed, and one that\n\
         # says who may subscribe: TIDINGS_JWT_SECRET_FILE, for instance, or TIDINGS_OPEN=true for development.\n",
    );
    for arg in command.get_arguments() {
        let (Some(variable), Some(help)) = (arg.get_env().and_then(|name| name.to_str()), arg.get_help()) else {
            continue;
        };
        let default = arg.get_default_values().first().and_then(|value| value.to_str());
        let value = match (default, arg.get_action()) {
            (Some(default), ArgAction::Set) => default.to_owned(),
            (_, ArgAction::SetTrue) => "true".into(),
            _ => arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string).unwrap_or_default(),
        };
        // Writing to a string does not fail.
        let _ = write!(text, "\n# {}\n#{variable}={value}\n", help.to_string().replace('\n', " "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_in_the_configuration_and_none_is_set() {
        let (command, text) = (Cli::command(), configuration(&Cli::command()));
        let variables: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
        assert!(variables.len() > 20);
        for variable in variables {
            assert_eq!(text.matches(&format!("\n#{variable}=")).count(), 1, "{variable}");
        }
        assert!(text.contains("#TIDINGS_LISTEN=127.0.0.1:8080\n") && text.contains("#TIDINGS_OPEN=true\n"), "{text}");
        assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')), "{text}");
    }
}
