//! What a package needs besides the binary, made from the command line itself, so that it is never older:
//! `tidings-proxy print conf`, and likewise `man`, `bash`, `zsh` and `fish`.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_complete::{Shell, generate};

use crate::check::arguments::Arguments;
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
    let mut text = Vec::new();
    match name {
        "conf" => text = configuration(&Cli::command()).into_bytes(),
        "man" => manual(&mut text)?,
        "bash" | "zsh" | "fish" => {
            let shell = name.parse::<Shell>().map_err(io::Error::other)?;
            let check = Arguments::command().name("check").mut_group("access", |group| group.required(false));
            generate(shell, &mut Cli::command().subcommand(check), "tidings-proxy", &mut text);
        }
        _ => return Ok(false),
    }
    io::stdout().write_all(&text)?;
    Ok(true)
}

/// The manual page: that of the proxy, and a section with what `tidings-proxy check` takes besides.
fn manual(text: &mut Vec<u8>) -> io::Result<()> {
    clap_mangen::Man::new(Cli::command()).section("8").render(text)?;
    let proxy = Cli::command();
    let is_own = |arg: &&Arg| proxy.get_arguments().all(|other| other.get_id() != arg.get_id());
    let check = Arguments::command();
    let mut own = Command::new("tidings-proxy check").args(check.get_arguments().filter(is_own).cloned());
    // Before it is built, a command does not know how its arguments are written.
    own.build();
    let mut section = Vec::new();
    clap_mangen::Man::new(own).render_options_section(&mut section)?;
    let about = check.get_about().map(ToString::to_string).unwrap_or_default();
    let title = format!(
        ".SH CHECK\n.B tidings\\-proxy check\n[OPTIONS] [TOPIC]...\n.PP\n{}. It takes the options above, and:\n",
        about.trim_end_matches('.').replace('-', "\\-").replace('\n', " ")
    );
    text.extend(String::from_utf8_lossy(&section).replacen(".SH OPTIONS\n", &title, 1).into_bytes());
    Ok(())
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
    fn the_manual_has_the_options_of_the_check() {
        let mut text = Vec::new();
        manual(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let (proxy, check) = text.split_once(".SH CHECK\n").unwrap();
        for option in ["token\\-file", "json", "TOPIC"] {
            assert!(check.contains(option), "{option}: {check}");
        }
        assert!(check.contains("The exit status is 1 if something must be mended."), "{check}");
        assert!(proxy.contains("database\\-url") && !check.contains("database\\-url"), "{check}");
    }

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
