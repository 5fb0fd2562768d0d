// SPDX-License-Identifier: GPL-2.0
//! `make clean`.

use crate::project::Project;
use anyhow::{Context, Result};
use std::{fs, io::ErrorKind, path::Path};

/// Removes what was built: here, and in the cache but for downloads.
pub fn clean(project: &Project) -> Result<()> {
    let _lock = project.lock()?;
    for folder in ["objects", "target", "bindgen-build"] {
        remove(&project.cache.join(folder))?;
    }
    for entry in fs::read_dir(&project.build)? {
        let path = entry?.path();
        // The program that is running now lies there.
        if path.file_name().is_some_and(|name| name != "target") {
            remove(&path)?;
        }
    }
    for entry in fs::read_dir(&project.root)? {
        let path = entry?.path();
        if is_left_by_kbuild(&path) {
            remove(&path)?;
        }
    }
    println!(
        "clean: done; downloads, kernel trees and ccache stay in {}",
        project.cache.display()
    );
    Ok(())
}

/// What an external module build leaves in the checkout.
fn is_left_by_kbuild(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ends = [".o", ".ko", ".mod", ".mod.c", ".rmeta", ".o.d"];
    name == "Module.symvers"
        || name == "modules.order"
        || ends.iter().any(|end| name.ends_with(end))
        || (name.starts_with('.') && name.ends_with(".cmd"))
}

fn remove(path: &Path) -> Result<()> {
    let done = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match done {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::is_left_by_kbuild;
    use std::path::Path;

    #[test]
    fn sources_are_not_left_behind_by_kbuild() {
        for name in [
            "s390_iommu.rs",
            "Kbuild",
            "Makefile",
            ".gitignore",
            "README.md",
        ] {
            assert!(!is_left_by_kbuild(Path::new(name)), "{name}");
        }
        for name in [
            "s390_iommu.ko",
            "s390_iommu.mod.c",
            ".s390_iommu.o.cmd",
            "Module.symvers",
        ] {
            assert!(is_left_by_kbuild(Path::new(name)), "{name}");
        }
    }
}
