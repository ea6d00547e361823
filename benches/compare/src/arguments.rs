//! What the command lines of the three programs have in common.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::shared::on_disk;

/// `--name value` for each name that is known, `--name` for each flag, and words.
pub(crate) struct Arguments {
    values: Vec<(String, String)>,
    flags: Vec<String>,
    pub(crate) words: Vec<String>,
}

impl Arguments {
    pub(crate) fn read(values: &[&str], flags: &[&str]) -> Result<Self> {
        let mut found = Self { values: Vec::new(), flags: Vec::new(), words: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let Some(name) = argument.strip_prefix("--") else {
                found.words.push(argument);
                continue;
            };
            if values.contains(&name) {
                let value = arguments.next().with_context(|| format!("--{name} wants a value"))?;
                found.values.push((name.to_owned(), value));
            } else if flags.contains(&name) {
                found.flags.push(name.to_owned());
            } else {
                bail!("--{name} is unknown; known are {values:?} with a value and {flags:?} without");
            }
        }
        Ok(found)
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn number(&self, name: &str, default: u64) -> Result<u64> {
        self.value(name).map_or(Ok(default), |text| text.parse().with_context(|| format!("--{name}: {text}")))
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.flags.iter().any(|known| known == name)
    }

    /// Where stores are made: `--dir`, or a directory of the build's. In memory is refused.
    pub(crate) fn directory(&self) -> PathBuf {
        on_disk(self.value("dir").map(str::to_owned))
    }

    /// Writes a file into the directory that `--out` names, if it does.
    pub(crate) fn write_out(&self, name: &str, text: &str) -> Result<()> {
        let Some(dir) = self.value("out") else { return Ok(()) };
        std::fs::create_dir_all(dir)?;
        let path = PathBuf::from(dir).join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
        Ok(())
    }
}
