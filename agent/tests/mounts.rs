//! What is mounted in a container, and how.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use std::os::unix::fs::{PermissionsExt, chown, symlink};

use guest::{refusal, spec, with_guest};
use serde_json::{Value, json};
use ttrpc::Code;

/// The default spec with one more mount.
fn with(args: &[&str], mount: Value) -> Value {
    let mut spec = spec(args);
    spec["mounts"].as_array_mut().unwrap().push(mount);
    spec
}

#[test]
fn a_tmpfs_can_begin_as_a_copy_of_what_it_covers() {
    with_guest(|guest| async {
        let data = guest.disk().join("data");
        std::fs::create_dir_all(data.join("sub/deep")).unwrap();
        std::fs::write(data.join("file"), vec![b'x'; 3 << 20]).unwrap();
        std::fs::write(data.join("sub/deep/tool"), "tool\n").unwrap();
        std::fs::set_permissions(data.join("sub/deep/tool"), std::fs::Permissions::from_mode(0o4755))
            .unwrap();
        std::fs::set_permissions(data.join("sub"), std::fs::Permissions::from_mode(0o2750)).unwrap();
        chown(data.join("file"), Some(7), Some(8)).unwrap();
        chown(&data, Some(5), Some(6)).unwrap();
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o711)).unwrap();
        symlink("/etc/passwd", data.join("link")).unwrap();
        std::process::Command::new("mkfifo").arg(data.join("pipe")).status().unwrap();
        let script = "cd /data; for f in . file link pipe sub sub/deep sub/deep/tool; do stat -c '%n %F %a %u:%g' $f; done
            readlink link; wc -c < file; cat sub/deep/tool; grep -c ' /data .* tmpfs ' /proc/self/mountinfo; touch new 2>&1";
        let mount = |options: Value| json!({"destination": "/data", "type": "tmpfs", "source": "t", "options": options});
        let seen = ". directory 711 5:6\nfile regular file 644 7:8\nlink symbolic link 777 0:0\npipe fifo 644 0:0\n\
                    sub directory 2750 0:0\nsub/deep directory 755 0:0\nsub/deep/tool regular file 4755 0:0\n\
                    /etc/passwd\n3145728\ntool\n1\n";
        let output = guest.run(&with(&["sh", "-c", script], mount(json!(["tmpcopyup"])))).await;
        assert_eq!(output.stdout, seen, "{output:?}");
        let output = guest.run(&with(&["sh", "-c", script], mount(json!(["tmpcopyup", "ro"])))).await;
        assert_eq!(output.stdout, format!("{seen}touch: new: Read-only file system\n"), "{output:?}");

        // The tmpfs bounds it; without the option it is empty, with the covered directory's permissions.
        let small = with(&["true"], mount(json!(["tmpcopyup", "size=1m"])));
        let (_, message) = refusal(guest.create("c", &small, [false; 3]).await);
        assert_eq!(message, "cannot mount /data (tmpfs): no space left on device");
        let look = "stat -c %a /data; ls -A /data";
        assert_eq!(guest.run(&with(&["sh", "-c", look], mount(json!([])))).await.stdout, "711\n");
        assert_eq!(guest.run(&with(&["sh", "-c", look], mount(json!(["mode=700"])))).await.stdout, "700\n");
        let proc = json!({"destination": "/p", "type": "proc", "options": ["tmpcopyup"]});
        assert_eq!(
            refusal(guest.create("c", &with(&["true"], proc), [false; 3]).await).0,
            Code::INVALID_ARGUMENT
        );
        guest
    });
}

#[test]
fn a_copy_follows_no_link_out_of_the_image() {
    with_guest(|guest| async {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret\n").unwrap();
        symlink(outside.path(), guest.disk().join("data")).unwrap();
        std::fs::create_dir(guest.disk().join("real")).unwrap();
        symlink(outside.path(), guest.disk().join("real/link")).unwrap();
        for destination in ["/data", "/real"] {
            let mount = json!({"destination": destination, "type": "tmpfs", "options": ["tmpcopyup"]});
            let script = format!("cat {destination}/secret {destination}/link/secret 2> /dev/null");
            match guest.create("c", &with(&["sh", "-c", &script], mount), [false, true, true]).await {
                Ok(_) => {
                    assert_eq!(guest.collect("c").await.stdout, "", "{destination}");
                    guest.delete("c").await.unwrap();
                }
                Err(error) => assert!(error.to_string().contains("mount point"), "{error}"),
            }
        }
        guest
    });
}

#[test]
fn proc_shows_what_its_options_say() {
    with_guest(|guest| async {
        let mut subset = spec(&["sh", "-c", "ls /proc | grep -v '^[0-9]'"]);
        subset["mounts"][0]["options"] = json!(["nosuid", "noexec", "nodev", "subset=pid"]);
        subset["linux"]["maskedPaths"] = json!([]);
        subset["linux"]["readonlyPaths"] = json!([]);
        assert_eq!(guest.run(&subset).await.stdout, "self\nthread-self\n");

        let mut hidden = spec(&["sleep", "1000"]);
        hidden["mounts"][0]["options"] = json!(["nosuid", "noexec", "nodev", "hidepid=invisible"]);
        guest.create("c", &hidden, [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let mut process = spec(&["sh", "-c", "ls -d /proc/1 2>&1"])["process"].take();
        assert_eq!(guest.exec("c", "root", &process).await.stdout, "/proc/1\n");
        process["user"] = json!({"uid": 9, "gid": 9});
        process["capabilities"] = json!({});
        assert_eq!(
            guest.exec("c", "user", &process).await.stdout,
            "ls: /proc/1: No such file or directory\n"
        );
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn attributes_and_propagation_are_those_of_the_spec() {
    with_guest(|guest| async {
        let volumes = guest.directory.path().join("disks/volumes");
        std::fs::create_dir_all(volumes.join("0/dir")).unwrap();
        std::fs::write(volumes.join("0/file"), "content\n").unwrap();
        // Fields 6 and 7 of mountinfo: attributes, propagation.
        let script = "for m in / /a /b /c /d; do grep \" $m \" /proc/self/mountinfo | head -n 1 | cut -d' ' -f6,7 | sed 's/:[0-9]*//'; done";
        let mut mounts = spec(&["sh", "-c", script]);
        mounts["linux"]["rootfsPropagation"] = json!("private");
        let volume = |at: &str, options: Value| json!({"destination": at, "type": "hull-volume", "source": "0", "options": options});
        let list = mounts["mounts"].as_array_mut().unwrap();
        list.push(volume("/a", json!(["rbind", "rro", "rnosuid", "noatime", "rshared"])));
        list.push(volume(
            "/b",
            json!(["bind", "rnoexec", "rexec", "nodiratime", "strictatime", "nosymfollow", "private"]),
        ));
        list.push(json!({"destination": "/c", "type": "tmpfs", "options": ["rro", "rnoexec", "shared"]}));
        list.push(volume("/d", json!(["rbind", "ro", "rw", "dev", "runbindable"])));
        let output = guest.run(&mounts).await;
        assert_eq!(
            output.stdout,
            "rw,relatime -\nro,nosuid,nodev,noatime shared\nrw,nodev,nodiratime,nosymfollow -\n\
             ro,noexec,relatime shared\nrw,nodev,relatime unbindable\n",
            "{output:?}"
        );
        mounts["linux"]["rootfsPropagation"] = json!("rshared");
        mounts["process"]["args"] = json!([
            "sh",
            "-c",
            "head -n 1 /proc/self/mountinfo | grep -c shared:; grep ' /b ' /proc/self/mountinfo | grep -c shared:"
        ]);
        assert_eq!(guest.run(&mounts).await.stdout, "1\n1\n");
        guest
    });
}
