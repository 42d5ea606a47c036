// A table whose rows are patched in place: focus and pointer stay where they are while it is live.
// Values are only ever put in as text. Kinds of columns: text, link, state, time, progress, open, acts.
const PAGE_SIZES = [10, 25, 50, 100];

export default {
  template: `
    <div class="table-card">
      <div class="table-box" tabindex="0" role="region" :aria-label="label">
        <table>
          <thead><tr>
            <th v-for="one in columns" :key="one.name" scope="col" :class="one.align" :aria-sort="one.sortable ? order(one) : null">
              <button v-if="one.sortable" type="button" class="sort" @click="sortBy(one.name)">{{ one.label }}<span aria-hidden="true"> {{ arrow(one) }}</span></button>
              <template v-else>{{ one.label }}</template>
            </th>
          </tr></thead>
          <tbody>
            <tr v-for="row in shown" :key="row.id">
              <td v-for="one in columns" :key="one.name" :class="[one.align, 'kind-' + one.kind]">
                <a v-if="one.kind === 'link'" class="mono" :href="one.href + encodeURIComponent(row[one.name])">{{ row[one.name] }}</a>
                <span v-else-if="one.kind === 'state'" :class="'state ' + row.colour">{{ row[one.name] }}</span>
                <time v-else-if="one.kind === 'time' && row[one.name] !== null" :datetime="exact(row[one.name])" :title="exact(row[one.name])">{{ local(row[one.name]) }}</time>
                <span v-else-if="one.kind === 'time'">{{ one.never }}</span>
                <div v-else-if="one.kind === 'progress'" class="bar" role="img" :aria-label="row.done + ' done'">
                  <div class="ok" :style="{ width: row.ok + '%' }"></div><div class="no" :style="{ width: row.no + '%' }"></div>
                </div>
                <button v-else-if="one.kind === 'open'" type="button" class="plain" :aria-label="one.says + ' ' + row[one.name]" @click="$emit('open', row.id)">{{ row[one.name] }}</button>
                <template v-else-if="one.kind === 'acts'">
                  <button v-for="act in row.acts" :key="act.name" type="button" class="plain" :class="{ bad: act.bad }" :aria-label="act.label + ' ' + row.name" @click="$emit('act', { name: act.name, id: row.id })">{{ act.label }}</button>
                </template>
                <span v-else :title="row[one.name]">{{ row[one.name] }}</span>
              </td>
            </tr>
          </tbody>
        </table>
        <div v-if="!rows.length" class="dim table-empty">{{ empty }}</div>
      </div>
      <div v-if="count > 10 || page > 1" class="table-foot">
        <label>Rows <select :value="size" @change="ask({ size: Number($event.target.value), page: 1 })"><option v-for="one in sizes" :key="one">{{ one }}</option></select></label>
        <span role="status">{{ first.toLocaleString() }}–{{ last.toLocaleString() }} of {{ count.toLocaleString() }}</span>
        <button type="button" class="plain" aria-label="Previous page" :disabled="now <= 1" @click="ask({ page: now - 1 })">‹</button>
        <button type="button" class="plain" aria-label="Next page" :disabled="last >= count" @click="ask({ page: now + 1 })">›</button>
      </div>
    </div>`,
  props: { label: String, columns: Array, rows: Array, total: Number, page: Number, page_size: Number, sort: String, descending: Boolean, empty: String },
  data() { return { here: 1, here_size: this.page_size, sizes: PAGE_SIZES }; },
  computed: {
    served() { return this.total !== null && this.total !== undefined; }, // the server pages and sorts
    size() { return this.served ? this.page_size : this.here_size; },
    count() { return this.served ? this.total : this.rows.length; },
    now() { return this.served ? this.page : Math.min(this.here, Math.max(1, Math.ceil(this.count / this.size))); },
    first() { return this.count ? (this.now - 1) * this.size + 1 : 0; },
    last() { return Math.min(this.count, this.now * this.size); },
    shown() { return this.served ? this.rows : this.rows.slice(this.first - 1, this.last); },
  },
  methods: {
    order(one) { return one.name !== this.sort ? "none" : this.descending ? "descending" : "ascending"; },
    arrow(one) { return one.name !== this.sort ? "" : this.descending ? "↓" : "↑"; },
    sortBy(name) { this.ask({ sort: name, descending: name === this.sort ? !this.descending : false, page: 1 }); },
    ask(wanted) {
      if (this.served) {
        this.$emit("ask", { page: this.page, size: this.page_size, sort: this.sort, descending: this.descending, ...wanted });
      } else {
        this.here = wanted.page ?? this.here;
        this.here_size = wanted.size ?? this.here_size;
      }
    },
    exact(value) { return this.moment(value).toISOString(); },
    local(value) { return this.moment(value).toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" }); },
    moment(value) { return new Date(typeof value === "number" ? value * 1000 : value); },
  },
};
