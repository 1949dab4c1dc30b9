// Search from the disk. Browsers give pages of file: no Worker; here an unseen frame runs its script and answers by messages.
// Material for MkDocs looks for the name IFrameWorker, and waits for what importScripts returns.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const place = new URL(url, location.href);
      const frame = Object.assign(document.createElement("iframe"), { hidden: true, srcdoc: "<!doctype html>" });
      this.inside = new Promise((done, failed) => {
        frame.addEventListener("load", () => {
          const inside = frame.contentWindow;
          const run = (source) =>
            new Promise((loaded, missing) => {
              const script = inside.document.createElement("script");
              Object.assign(script, { src: new URL(source, place), onload: loaded, onerror: missing });
              inside.document.head.append(script);
            });
          inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          inside.importScripts = async (...sources) => {
            for (const source of sources) await run(source);
          };
          run(place).then(() => done(inside), failed);
        });
      });
      document.body.append(frame);
    }

    async postMessage(data) {
      const inside = await this.inside;
      inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    }
  };
}
