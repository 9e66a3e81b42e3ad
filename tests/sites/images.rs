//! A real filesystem's image, in through the tools that people use, and out of the secondary unchanged.

use std::fs;
use std::path::Path;

use crate::pair::*;

/// Bytes of real files in the image.
const FILES_BYTES: u64 = 300 * MIB;
const IMAGE_MIB: u64 = 384;

/// Where real files are on any system that runs these tests.
const SOURCES: [&str; 3] = ["/usr/lib", "/usr/share", "/usr/bin"];

#[test]
fn an_image_of_real_files_goes_in_and_comes_out_of_the_secondary_unchanged() {
    let options = Options {
        volumes: vec![("copied", IMAGE_MIB), ("converted", IMAGE_MIB)],
        journal_mib: 128,
        ..Options::default()
    };
    let sites = Sites::start(&options);
    let (files, image) = (sites.path("files"), sites.path("image"));
    fs::create_dir(&files).expect("a folder");
    let mut left = FILES_BYTES;
    for source in SOURCES {
        gather(Path::new(source), &files.join(source.replace('/', "-")), &mut left);
    }
    assert_eq!(left, 0, "this system has too few files");
    let size = format!("{IMAGE_MIB}M");
    // Small blocks are the default of small filesystems, and would not line up with Lockstep's.
    succeeds(tool("mkfs.ext4", &["-q", "-b", "4096", "-d", path(&files), path(&image), &size]));

    succeeds(tool("nbdcopy", &["--flush", path(&image), &sites.left.uri("copied")]));
    let converted = sites.left.uri("converted");
    succeeds(tool("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", path(&image), &converted]));
    sites.wait("--settled");
    let out = sites.path("out");
    for export in ["copied", "converted"] {
        let right = sites.right.uri(export);
        succeeds(tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", path(&image), &right]));
        succeeds(tool("nbdcopy", &[&right, path(&out)]));
        succeeds(tool("cmp", &[path(&image), path(&out)]));
        succeeds(tool("e2fsck", &["-fn", path(&out)]));
        fs::remove_file(&out).expect("removed");
    }
}

/// Copies files of `from`, in order of their names, until `left` bytes are reached exactly.
fn gather(from: &Path, to: &Path, left: &mut u64) {
    let Ok(entries) = fs::read_dir(from) else { return };
    let mut entries: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    entries.sort();
    for entry in entries {
        if *left == 0 {
            return;
        }
        let name = entry.file_name().expect("an entry has a name");
        let Ok(about) = fs::symlink_metadata(&entry) else { continue };
        if about.is_dir() {
            gather(&entry, &to.join(name), left);
        } else if about.is_file()
            && let Ok(mut bytes) = fs::read(&entry)
        {
            bytes.truncate((*left).try_into().unwrap_or(usize::MAX));
            *left -= bytes.len() as u64;
            fs::create_dir_all(to).expect("a folder");
            fs::write(to.join(name), bytes).expect("a copy");
        }
    }
}
